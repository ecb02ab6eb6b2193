"""The public client of openpi, as it is, against our server.

It asks for NumPy 1, and works with NumPy 2: `make test` installs it without its dependencies. Where
it is not installed, this is skipped.
"""

import time

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from imagewam_jax.serving.acting import Actor
from imagewam_jax.wire.messages import Limits, pack, unpack
from tests.serving.robots import FAST, observation, served, write_certificate
from tests.wire.frames import random_tree, same

# It connects in a way that the newest websockets warn of.
pytestmark = pytest.mark.filterwarnings("ignore:connect\\(\\) must be used:DeprecationWarning")
client = pytest.importorskip("openpi_client.websocket_client_policy")
broker = pytest.importorskip("openpi_client.action_chunk_broker")
msgpack_numpy = pytest.importorskip("openpi_client.msgpack_numpy")


@pytest.fixture
def robot(server):
    connected = client.WebsocketClientPolicy("127.0.0.1", server.port)
    yield connected
    connected._ws.close()


def test_the_same_bytes():
    """Both packers write the same bytes for random trees, and read them alike."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        tree = {"a": random_tree(rng), "b": random_tree(rng)}
        frame = msgpack_numpy.packb(tree)
        assert pack(tree) == frame
        limits = Limits(2**16, containers=10_000)
        assert same(unpack(frame, limits), msgpack_numpy.unpackb(frame))


def test_metadata_and_chunks(robot):
    assert robot.get_server_metadata()["action_horizon"] == 4
    reply = robot.infer(observation())
    assert reply["actions"].shape == (4, 4) and reply["actions"].dtype == np.float32
    again = robot.infer(observation(**{"imagewam/step": 0}))
    np.testing.assert_array_equal(again["actions"], reply["actions"])


def test_an_error_and_then_a_chunk(robot):
    wrong = observation()
    wrong["observation/images"] = wrong.pop("observation/image")
    with pytest.raises(RuntimeError, match="InvalidObservation: observation/image: expected"):
        robot.infer(wrong)
    assert robot.infer(observation())["actions"].shape == (4, 4)


def test_its_broker_cuts_a_reply_into_steps(robot):
    """It cuts every array of a reply, of which there is one."""
    chunk = robot.infer(observation(**{"imagewam/step": 0}))["actions"]
    by_step = broker.ActionChunkBroker(robot, action_horizon=3)
    for step in range(3):
        found = by_step.infer(observation(**{"imagewam/step": 0}))
        np.testing.assert_array_equal(found["actions"], chunk[step])
        assert isinstance(found["server_timing"]["infer_ms"], float)


def test_a_token(tiny):
    settings = FAST._replace(tokens={"arm": "0123456789abcdef"}, buckets=(1,))
    with served(*tiny, settings) as running:
        with pytest.raises(Exception, match="401"):
            client.WebsocketClientPolicy("127.0.0.1", running.port, api_key="0123456789abcdeg")
        robot = client.WebsocketClientPolicy("127.0.0.1", running.port, api_key="0123456789abcdef")
        assert robot.infer(observation())["actions"].shape == (4, 4)
        robot._ws.close()


def test_tls(tiny, tmp_path, monkeypatch):
    """It knows a certificate of our own by the environment."""
    certificate, key = write_certificate(tmp_path, "server")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    settings = FAST._replace(certificate=certificate, key=key, buckets=(1,))
    with served(*tiny, settings) as running:
        robot = client.WebsocketClientPolicy("wss://127.0.0.1", running.port)
        assert robot.infer(observation())["actions"].shape == (4, 4)
        robot._ws.close()


def test_a_server_that_still_compiles(tiny):
    """It waits for the metadata as long as that takes."""

    class Slow(Actor):
        def compile(self, size):
            time.sleep(2.0)
            return super().compile(size)

    actor, contract = tiny
    slow = Slow(actor._policy, contract)
    with served(slow, contract, FAST._replace(buckets=(1,)), wait=False) as running:
        start = time.monotonic()
        robot = client.WebsocketClientPolicy("127.0.0.1", running.port)
        assert time.monotonic() - start > 1.5
        assert robot.infer(observation())["actions"].shape == (4, 4)
        robot._ws.close()


def test_a_message_that_is_too_large(robot):
    with pytest.raises(ConnectionClosed) as closed:
        robot.infer(observation(**{"observation/image": np.zeros((720, 1280, 3), np.uint8)}))
    assert closed.value.rcvd.code == 1009
