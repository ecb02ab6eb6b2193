"""What a server refuses: requests that do not fit, frames that are none, and too many of them."""

import logging
import re

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from tests.serving.robots import FAST, Robot, observation, served
from tests.wire.frames import bad_frames, packed


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"observation/image": np.zeros((64, 64, 3), np.float32)},
            "observation/image: expected ui",
        ),
        ({"observation/image": np.zeros((64, 63, 3), np.uint8)}, "observation/image: .*64, 63, 3"),
        ({"observation/image": np.zeros((3, 64, 64), np.uint8)}, "observation/image: expected"),
        ({"observation/image": None}, "observation/image: expected .* got a NoneType"),
        ({"observation/state": np.zeros(3)}, "observation/state: expected .* got"),
        ({"observation/state": np.array([0, 0, np.nan, 0])}, "observation/state: .* finite .* nan"),
        ({"observation/state": np.array([0, 0, np.inf, 0])}, "observation/state: .* finite"),
        ({"observation/state": np.full(4, 1e300)}, "observation/state: .* finite numbers, got inf"),
        ({"observation/state": np.zeros(4, bool)}, "observation/state: expected real numbers"),
        ({"observation/state": [0.0, 0.0, 0.0, "1"]}, "observation/state: expected 4 numbers"),
        ({"observation/state": [0.0, 0.0, 0.0, [1.0]]}, "observation/state: expected 4 numbers"),
        ({"prompt": "wash the faucet"}, "prompt: expected one of .*open the faucet.* got 'wash"),
        ({"prompt": ""}, "prompt: expected 1 to 512 characters, got 0"),
        ({"prompt": "x" * 513}, "prompt: expected 1 to 512 characters, got 513"),
        ({"prompt": b"open the faucet"}, "prompt: expected a text, got a bytes"),
        ({"imagewam/seed": -1}, "imagewam/seed: expected a whole number .* got -1"),
        ({"imagewam/seed": True}, "imagewam/seed: expected a whole number"),
        ({"imagewam/seed": []}, "imagewam/seed: expected a whole number"),
        ({"imagewam/seed": [1, "2"]}, "imagewam/seed: expected .* or up to 4 of them"),
        ({"imagewam/step": 1.5}, "imagewam/step: expected a whole number"),
        ({"imagewam/reset": 1}, "imagewam/reset: expected true or false"),
        ({"imagewam/deadline_ms": 0}, "imagewam/deadline_ms: expected milliseconds above 0"),
        ({"imagewam/deadline_ms": float("nan")}, "imagewam/deadline_ms: expected milliseconds"),
        ({"imagewam/deadline_ms": np.zeros(2)}, "imagewam/deadline_ms: expected milliseconds"),
        ({"imagewam/session": "x" * 129}, "imagewam/session: expected a text"),
        ({"imagewam/stop": 1}, "imagewam/stop: expected one of .* got an unknown key"),
        ({"imagewam/prev_actions": np.zeros((2, 4))}, "imagewam/prev_actions: expected none"),
        ({"endpoint": "shell"}, "endpoint: expected 'infer' or 'reset', got shell"),
        ({"endpoint": np.zeros(2)}, "endpoint: expected 'infer' or 'reset'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_fit_is_an_error_and_the_connection_stays(server, changes, error):
    with Robot(server.url) as robot:
        answer = robot.ask(observation(**changes))
        assert isinstance(answer, str) and re.match(f"InvalidObservation: {error}", answer), answer
        assert "Traceback" not in answer and ".py" not in answer and len(answer) < 500
        assert robot.ask(observation())["actions"].shape == (4, 4)


def test_keys_that_are_of_others_are_passed_over(server):
    """Clients send all that their robot has."""
    with Robot(server.url) as robot:
        expected = robot.ask(observation() | {"imagewam/step": 0})["actions"]
        more = observation() | {"observation/joint_position": np.zeros(7), "imagewam/step": 0}
        np.testing.assert_array_equal(robot.ask(more)["actions"], expected)


def test_frames_that_are_no_requests(server):
    with Robot(server.url) as robot:
        for frame, error in (
            ("hello", "message: expected a binary frame, got a text"),
            (b"", "message: expected a msgpack map"),
            (packed([1]), "message: expected a map of texts, got list"),
            (
                packed({"x": {b"__ndarray__": True, b"data": b"8", b"dtype": "|O", b"shape": [1]}}),
                "x: expected a dtype of",
            ),
        ):
            assert robot.ask_frame(frame).startswith(f"InvalidObservation: {error}")
        assert robot.ask(observation())["actions"].shape == (4, 4)


def test_eight_bad_requests_in_a_row_end_the_connection(server):
    with Robot(server.url) as robot:
        for _ in range(7):
            robot.ask({})
        robot.ask(observation())
        for _ in range(8):
            robot.ask({})
        with pytest.raises(ConnectionClosed) as closed:
            robot.ask(observation())
    assert closed.value.rcvd.code == 1008


def test_a_message_that_is_too_large_is_not_read(server):
    with Robot(server.url) as robot, pytest.raises(ConnectionClosed) as closed:
        robot.ask_frame(bytes(2**20))
    assert closed.value.rcvd.code == 1009


def test_more_requests_than_are_allowed(tiny):
    with served(*tiny, FAST._replace(rate=10.0, buckets=(1,))) as running:
        with Robot(running.url) as robot, pytest.raises(ConnectionClosed) as closed:
            for _ in range(40):
                robot.ask(observation())
        assert closed.value.rcvd.code == 1008


def test_more_connections_than_are_allowed(tiny):
    with served(*tiny, FAST._replace(connections=1, buckets=(1,))) as running:
        with Robot(running.url), pytest.raises(Exception, match="503"):
            Robot(running.url)
        assert 'imagewam_rejected_total{reason="connections"} 1.0' in running.get("/metrics")


def fuzz(server, count: int) -> None:
    """Every frame is answered by a text or a reply; between them, good requests are."""
    rng = np.random.default_rng(0)
    good = observation()
    with Robot(server.url) as robot:
        expected = robot.ask(good | {"imagewam/step": 0})["actions"]
        for number, frame in enumerate(bad_frames(rng, good, count)):
            answer = robot.ask_frame(frame)
            assert isinstance(answer, dict) or answer.startswith("InvalidObservation: "), answer
            if number % 7 == 6:  # fewer than the bad requests that end a connection
                reply = robot.ask(good | {"imagewam/step": 0})
                np.testing.assert_array_equal(reply["actions"], expected)


def test_frames_that_are_almost_good(server):
    fuzz(server, 2000)


@pytest.mark.slow(minutes=1)
def test_twenty_thousand_frames(server, monkeypatch):
    # pytest keeps every record of the log, which would count as the server's memory.
    monkeypatch.setattr(logging.getLogger("imagewam_jax.serving.server"), "disabled", True)
    fuzz(server, 1000)
    before = _resident_kib()
    fuzz(server, 20_000)
    assert _resident_kib() - before < 20 * 1024


def _resident_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
