"""What a server answers: chunks that are those of the policy, and errors that harm nobody."""

import concurrent.futures
import logging
import random
import re
import socket
import struct
import threading
import time
import urllib.error

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from imagewam_jax.preprocess.inputs import Observations
from imagewam_jax.serving import batching
from imagewam_jax.serving.acting import Actor, NotFinite, Row
from imagewam_jax.serving.contract import ActionRange
from tests.serving.robots import FAST, Robot, observation, served, tiny_actor
from tests.training.tiny import INSTRUCTIONS
from tests.wire.frames import bad_frames, packed


def acted(policy, seen: list[dict], steps: list[int], size: int) -> np.ndarray:
    """The chunks of `Policy.act` for observations, in a batch that repeats the first."""
    seen = seen + seen[:1] * (size - len(seen))
    steps = steps + steps[:1] * (size - len(steps))
    noise = [
        np.random.default_rng([each["imagewam/seed"], step]).standard_normal(
            (policy.horizon, policy.action_dim), np.float32
        )
        for each, step in zip(seen, steps, strict=True)
    ]
    observations = Observations(
        np.stack([each["observation/image"][None] for each in seen]),
        np.stack([each["observation/state"] for each in seen]),
        policy.text_ids([each["prompt"] for each in seen]),
    )
    return policy.act(observations, np.stack(noise))


def test_a_chunk_is_that_of_the_policy(server, policy):
    """Bit for bit, with the noise of the request's seed and step; steps are counted."""
    with Robot(server.url) as robot:
        for step in (0, 1, 7, 8):
            asked = observation(3, **({"imagewam/step": 7} if step == 7 else {}))
            reply = robot.ask(asked)
            np.testing.assert_array_equal(reply["actions"], acted(policy, [asked], [step], 1)[0])
            assert reply["actions"].dtype == np.float32
        assert reply["imagewam/chunk_id"] == 3 and type(reply["imagewam/clipped"]) is int
        timing = reply["server_timing"]
        assert set(timing) == {"infer_ms", "prev_total_ms", "queue_ms", "batch_rows", "bucket"}
        assert all(type(value) in (int, float) for value in timing.values())


def test_the_metadata(server, policy):
    with Robot(server.url) as robot:
        about = robot.metadata
    assert about["protocol"] == 1 and about["action_horizon"] == policy.horizon == 4
    assert about["image_resolution"] == {"observation/image": [64, 64]}
    assert (about["state_dim"], about["action_dim"]) == (4, 4)
    assert about["instructions"] == list(INSTRUCTIONS) and about["any_instruction"] is False
    assert about["action_names"] == ["x", "y", "z", "gripper"]
    assert about["action_relative"] == [True, True, True, False] and about["control_hz"] == 80.0
    assert len(about["policy_hash"]) == 16 and about["checkpoint_step"] == 40


def test_robots_that_ask_together_are_one_batch(server, policy):
    """Whoever asks, and in whatever order: each gets its own chunk, that of a batch of 8."""
    asked = [observation(seed) for seed in range(8)]
    barrier = threading.Barrier(8)

    def one(number):
        with Robot(server.url) as robot:
            replies = []
            for step in range(20):
                barrier.wait()
                replies.append(robot.ask(asked[number] | {"imagewam/step": step}))
            return replies

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(one, range(8)))
    rows = [reply["server_timing"]["batch_rows"] for robot in replies for reply in robot]
    assert max(rows) > 1
    alone = [acted(policy, asked, [step] * 8, 8) for step in range(20)]
    for number, robot in enumerate(replies):
        for step, reply in enumerate(robot):
            np.testing.assert_allclose(reply["actions"], alone[step][number], rtol=0, atol=1e-5)


def test_rows_are_never_exchanged(tiny, policy):
    """Batches of rows in any order and number: each chunk is bit for bit that of its row in a batch
    of the same size."""
    actor, _ = tiny
    asked = [observation(seed) for seed in range(8)]
    rows = [
        Row(
            each["observation/image"][None],
            each["observation/state"].astype(np.float32),
            each["prompt"],
            (each["imagewam/seed"],),
            0,
        )
        for each in asked
    ]
    expected = acted(policy, asked, [0] * 8, 8)
    mixing = random.Random(0)
    for _ in range(100):
        order = mixing.sample(range(8), mixing.randint(1, 8))
        for number, chunk in zip(order, actor.act([rows[n] for n in order], 8), strict=True):
            np.testing.assert_array_equal(chunk.actions, expected[number])


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
        ({"imagewam/prev_actions": np.zeros((2, 4))}, "imagewam/prev_actions: expected one of"),
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


def test_sessions_of_one_connection(server, policy):
    """Each counts its own steps; a reset begins again, in RoboArena's words too."""
    with Robot(server.url) as robot:

        def step_of(**changes):
            asked = observation(2, **changes)
            actions = robot.ask(asked)["actions"]
            chunks = [acted(policy, [asked], [step], 1)[0] for step in range(3)]
            return [np.array_equal(actions, chunk) for chunk in chunks].index(True)

        assert [step_of(), step_of(), step_of(**{"imagewam/session": "left"})] == [0, 1, 0]
        assert step_of(**{"session_id": "left", "endpoint": "infer"}) == 1
        assert step_of(**{"imagewam/reset": True}) == 0
        reset = robot.ask({"endpoint": "reset", "session_id": "left"})
        assert reset == {"status": "reset successful"}
        assert [step_of(**{"imagewam/session": "left"}), step_of()] == [0, 1]
    with Robot(server.url) as robot:
        assert step_of() == 0


def test_an_observation_that_asks_for_nothing(server):
    with Robot(server.url) as robot:
        assert robot.ask(observation(**{"imagewam/observe": True})) == {}


class Slowed(Actor):
    """A policy that takes so many seconds longer, once it is compiled."""

    seconds = 0.0

    def act(self, rows, size):
        time.sleep(self.seconds)
        return super().act(rows, size)


@pytest.fixture
def slowed(tiny):
    actor, contract = tiny
    return Slowed(actor._policy, contract), contract


def test_a_request_that_is_begun_too_late_is_dropped(slowed):
    actor, contract = slowed
    with served(actor, contract, FAST._replace(buckets=(1,))) as running:
        actor.seconds = 0.5
        with Robot(running.url) as first, Robot(running.url) as second:
            first.connection.send(packed(observation()))
            time.sleep(0.1)
            answer = second.ask(observation(**{"imagewam/deadline_ms": 50}))
            assert answer.startswith("DeadlineMissed: begun ")
            first.connection.recv()
            assert second.ask(observation(**{"imagewam/deadline_ms": 5000}))["actions"].size
        assert "imagewam_deadline_missed_total 1.0" in running.get("/metrics")


def test_the_earliest_deadline_is_first(slowed):
    actor, contract = slowed
    order = []
    with served(actor, contract, FAST._replace(buckets=(1,))) as running:
        actor.seconds = 0.3

        def ask(name, deadline):
            with Robot(running.url) as robot:
                robot.ask(observation(**({"imagewam/deadline_ms": deadline} if deadline else {})))
                order.append(name)

        threads = []
        for name, deadline in (("busy", 0), ("none", 0), ("late", 9000), ("early", 5000)):
            threads.append(threading.Thread(target=ask, args=(name, deadline)))
            threads[-1].start()
            time.sleep(0.06)
        for thread in threads:
            thread.join()
    assert order == ["busy", "early", "late", "none"]


class Broken(Actor):
    """A policy that fails, or answers with NaN."""

    failure = None

    def act(self, rows, size):
        if isinstance(self.failure, NotFinite):
            return [self.failure] * len(rows)
        if self.failure:
            raise self.failure
        return super().act(rows, size)


@pytest.mark.parametrize("failure", [RuntimeError("secret of the house"), NotFinite("nan")])
def test_a_policy_that_fails_tells_a_number_alone(tiny, failure, caplog):
    actor, contract = tiny
    actor = Broken(actor._policy, contract)
    with served(actor, contract, FAST._replace(buckets=(1,))) as running:
        actor.failure = failure
        with Robot(running.url) as robot:
            answer = robot.ask(observation())
            kind, _, number = answer.partition(" ")
            actor.failure = None
            assert robot.ask(observation())["actions"].size
    assert kind == "InternalError" and len(number) == 8 and "secret" not in answer
    assert any(number in record.getMessage() and record.exc_info for record in caplog.records)


def test_actions_that_are_not_finite_are_never_sent(tiny):
    actor, _ = tiny
    assert isinstance(actor._chunk(np.full((4, 4), np.nan, np.float32)), NotFinite)


def test_actions_beyond_the_data_are_counted_and_clipped(tiny):
    actor, contract = tiny
    low, high = np.full(4, -0.1, np.float32), np.full(4, 0.1, np.float32)
    tight = contract._replace(action_range=ActionRange(low, high))
    actions = np.array([[0.5, 0, 0, 0], [0, -0.2, 0.05, 0.2]], np.float32)
    reported = Actor(actor._policy, tight)._chunk(actions)
    assert reported.clipped == 3 and reported.actions is actions
    clipped = Actor(actor._policy, tight, clip=True)._chunk(actions)
    assert clipped.clipped == 3
    np.testing.assert_array_equal(clipped.actions, np.clip(actions, -0.1, 0.1).astype(np.float32))


def test_the_range_of_the_data(tiny):
    """q01 and q99, wider by a quarter; the gripper of the sample never moves."""
    within = tiny[1].action_range
    np.testing.assert_array_equal(within.high, np.float32([1.5, 1.5, 1.5, np.inf]))
    np.testing.assert_array_equal(within.low, np.float32([-1.5, -1.5, -1.5, -np.inf]))


def test_images_of_another_size_are_resized_as_in_training(policy):
    actor, contract = tiny_actor(image_size=(48, 80))
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3)).astype(np.uint8)
    settings = FAST._replace(buckets=(1,))
    with served(actor, contract, settings) as running, Robot(running.url) as robot:
        asked = observation(**{"observation/image": image})
        found = robot.ask(asked)["actions"]
        wrong = robot.ask(observation())
    np.testing.assert_allclose(found, acted(policy, [asked], [0], 1)[0], atol=1e-6)
    assert "expected uint8 RGB [48, 80, 3], got uint8 [64, 64, 3]" in wrong


def test_pages(server):
    assert server.get("/healthz") == "OK\n" and server.get("/readyz") == "ready\n"
    with Robot(server.url) as robot:
        robot.ask(observation(1, **{"imagewam/session": "<b>left arm</b>"}))
        page = server.get("/")
    assert "&lt;b&gt;left arm&lt;/b&gt;" in page and "<b>left" not in page
    assert "open the faucet" in page and 'http-equiv="refresh"' in page
    assert page.count("data:image/png;base64,") == 1 and "data:image/svg+xml;base64," in page
    assert "http://" not in page and "https://" not in page and "<script" not in page
    metrics = server.get("/metrics")
    for name in (
        'imagewam_requests_total{code="ok"}',
        "imagewam_request_seconds_bucket",
        "imagewam_queue_seconds_sum",
        'imagewam_device_seconds_count{bucket="1",stage="act"}',
        "imagewam_batch_rows_count",
        "imagewam_padding_rows_total",
        "imagewam_received_bytes_total",
        'imagewam_compile_seconds{program="act_8"}',
        "imagewam_ready 1.0",
    ):
        assert name in metrics, name
    with pytest.raises(urllib.error.HTTPError, match="404"):
        server.get("/etc/passwd")


def test_the_head_of_a_page_has_no_body(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        raw.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b"".join(iter(lambda: raw.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n")


def test_a_robot_waits_for_the_compilation(slowed):
    """It is connected at once, and gets the metadata when everything is compiled."""
    actor, contract = slowed
    actor.seconds = 1.5
    with served(actor, contract, FAST._replace(buckets=(1,)), wait=False) as running:
        start = time.monotonic()
        with pytest.raises(urllib.error.HTTPError, match="503"):
            running.get("/readyz")
        assert running.get("/healthz") == "OK\n"
        with Robot(running.url) as robot:
            assert time.monotonic() - start > 1.0 and running.server.state.is_ready
            assert robot.metadata["protocol"] == 1


@pytest.fixture
def impatient(monkeypatch):
    """Pings and waits of fractions of seconds."""
    module = "imagewam_jax.serving.server"
    monkeypatch.setattr(f"{module}.PING_SECONDS", 0.2)
    monkeypatch.setattr(f"{module}.PONG_SECONDS", 0.6)
    monkeypatch.setattr(f"{module}.UNFINISHED_SECONDS", 0.5)
    monkeypatch.setattr(f"{module}.HANDSHAKE_SECONDS", 1.0)


def test_a_long_batch_does_not_end_connections(slowed, impatient):
    """The event loop answers pings while the device computes, for many times the tolerance."""
    actor, contract = slowed
    with served(actor, contract, FAST._replace(buckets=(1,))) as running:
        actor.seconds = 4.0
        options = {"ping_interval": 0.2, "ping_timeout": 0.6}
        with Robot(running.url, **options) as busy, Robot(running.url, **options) as waiting:
            busy.connection.send(packed(observation()))
            assert waiting.ask(observation())["actions"].size
            assert busy.connection.recv()


def raw_connection(port: int) -> socket.socket:
    """A WebSocket connection whose frames are written by hand; the metadata are read."""
    raw = socket.create_connection(("127.0.0.1", port), timeout=20)
    raw.sendall(
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    received = b""
    while received.count(b"\r\n\r\n") < 1 or len(received.split(b"\r\n\r\n", 1)[1]) < 100:
        received += raw.recv(4096)
    return raw


def masked(frame: bytes) -> bytes:
    """A binary frame as clients send it, with a mask of zeros."""
    return b"\x82\xfe" + struct.pack(">H", len(frame)) + bytes(4) + frame


@pytest.mark.parametrize("sent", [1, 4, 8, 2000], ids="{} bytes of a message".format)
def test_a_client_that_does_not_end_its_message_is_left(tiny, impatient, sent):
    """Others are served in the meantime."""
    frame = masked(packed(observation()))
    with (
        served(*tiny, FAST._replace(buckets=(1,))) as running,
        raw_connection(running.port) as raw,
        Robot(running.url) as robot,
    ):
        raw.sendall(frame[:sent])
        start = time.monotonic()
        while True:
            assert robot.ask(observation())["actions"].size
            raw.settimeout(0.05)
            try:
                if raw.recv(4096) == b"":
                    break
            except TimeoutError:
                assert time.monotonic() - start < 10
            except ConnectionResetError:
                break


def test_a_client_that_answers_no_ping_is_left(tiny, impatient):
    """As one whose cable was cut: nothing says that it is gone."""
    with served(*tiny, FAST._replace(buckets=(1,))) as running:
        with raw_connection(running.port) as raw:
            while running.server.state.connections:
                time.sleep(0.01)
            raw.settimeout(10)
            assert b"keepalive" in b"".join(iter(lambda: raw.recv(4096), b""))
        with Robot(running.url) as robot:
            assert robot.ask(observation())["actions"].size


def test_clients_that_vanish(slowed):
    """In the middle of a message, and while they wait for an answer, without a word."""
    actor, contract = slowed
    frame = masked(packed(observation()))
    with served(actor, contract) as running:
        actor.seconds = 0.05
        with Robot(running.url) as robot:
            for sent in (0, 1, 100, len(frame)):
                raw = raw_connection(running.port)
                raw.sendall(frame[:sent])
                # Closed with a reset, as of a process that was killed.
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                raw.close()
                assert robot.ask(observation())["actions"].size
            while len(running.server.state.connections) > 1:
                time.sleep(0.01)
            assert robot.ask(observation())["actions"].size


def test_a_stop_answers_what_was_asked(slowed):
    """Then every connection is closed with 1001, and none is taken any more."""
    actor, contract = slowed
    with served(actor, contract, FAST._replace(buckets=(1, 2))) as running:
        actor.seconds = 1.0
        with Robot(running.url) as busy, Robot(running.url) as idle:
            busy.connection.send(packed(observation()))
            time.sleep(0.3)
            running.stop()
            with pytest.raises(ConnectionClosed) as closed:
                idle.connection.recv(10)
            assert closed.value.rcvd.code == 1001
            with pytest.raises(OSError):
                Robot(running.url)
            assert isinstance(busy.connection.recv(10), bytes)
            with pytest.raises(ConnectionClosed) as closed:
                busy.connection.recv(10)
            assert closed.value.rcvd.code == 1001


def test_a_compilation_that_fails_ends_the_server(slowed):
    actor, contract = slowed

    def fail(rows, size):
        raise MemoryError("the device is full")

    actor.act = fail
    full = pytest.raises(AssertionError, match="the device is full")
    with full, served(actor, contract, wait=False) as running:
        while running.loop.is_running():
            time.sleep(0.01)


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


@pytest.mark.slow(minutes=5)
def test_a_hundred_thousand_frames(server, monkeypatch):
    # pytest keeps every record of the log, which would count as the server's memory.
    monkeypatch.setattr(logging.getLogger("imagewam_jax.serving.server"), "disabled", True)
    fuzz(server, 1000)
    before = _resident_kib()
    fuzz(server, 100_000)
    assert _resident_kib() - before < 50 * 1024


def _resident_kib() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


def test_a_robot_does_not_wait_for_robots_that_are_silent(server):
    """One that asked once, and one that never did, cost the others 2 ms at most."""
    assert batching.GATHER_SECONDS == 0.002
    with Robot(server.url) as robot, Robot(server.url), Robot(server.url) as other:
        other.ask(observation())
        time.sleep(1.2)
        queue = [robot.ask(observation())["server_timing"]["queue_ms"] for _ in range(30)]
    assert np.median(queue) < 1.5
