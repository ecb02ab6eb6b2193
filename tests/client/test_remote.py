"""A server as a source of chunks: time limits, new connections, and a whole rollout."""

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from websockets.sync.server import ServerConnection, serve

from imagewam_jax.client.broker import ChunkBroker
from imagewam_jax.client.remote import RemotePolicy
from imagewam_jax.errors import RequestRefused, ServingError
from imagewam_jax.serving.in_process import InProcessPolicy
from tests.serving.robots import FAST, observation, served, tiny_actor
from tests.wire.frames import packed


@pytest.fixture(scope="module")
def server():
    with served(*tiny_actor()) as running:
        yield running


def test_a_server_and_a_policy_in_this_process_answer_the_same(server):
    """Bit for bit; and so do their errors."""
    remote, local = RemotePolicy(server.url), InProcessPolicy(*tiny_actor())
    assert remote.metadata == local.metadata
    for number in range(6):
        if number == 3:
            remote.reset()
            local.reset()
        asked = observation(5 if number == 3 else number % 3)
        replies = [source.infer(asked) for source in (remote, local)]
        np.testing.assert_array_equal(*(reply["actions"] for reply in replies))
        for key in ("imagewam/chunk_id", "imagewam/clipped"):
            assert replies[0][key] == replies[1][key]
    errors = []
    for source in (remote, local):
        with pytest.raises(RequestRefused) as error:
            source.infer(observation(prompt="wash"))
        errors.append(str(error.value).removeprefix(f"{server.url}: "))
    assert errors[0] == errors[1]
    remote.close()
    local.close()


@pytest.mark.parametrize("mode", ["sync", "aligned", "ensemble"])
def test_a_broker_over_either(server, mode):
    """In sync, step by step the same; the others need steps that take time."""
    played = []
    for source in (RemotePolicy(server.url), InProcessPolicy(*tiny_actor())):
        broker = ChunkBroker(source, mode=mode, execute_steps=2, control_hz=10.0)
        steps = []
        for number in range(8):
            steps.append(broker.infer(observation(number))["actions"])
            time.sleep(0.0 if mode == "sync" else 0.1)
        assert not broker.held
        played.append(np.stack(steps))
        broker.close()
    assert played[0].shape == (8, 4) and np.isfinite(played).all()
    if mode == "sync":
        np.testing.assert_array_equal(*played)


def test_a_request_that_is_refused_leaves_the_connection(server):
    remote = RemotePolicy(server.url)
    connection = remote._connection
    with pytest.raises(RequestRefused, match="observation/image: expected"):
        remote.infer({})
    assert remote.infer(observation())["actions"].shape == (4, 4)
    assert remote._connection is connection
    remote.close()


@contextlib.contextmanager
def answering(answer: Callable[[ServerConnection], None]) -> Iterator[str]:
    """The address of a server that treats each connection as `answer` does."""
    with serve(answer, "127.0.0.1", 0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}"


def test_a_late_reply_is_never_taken_for_the_next():
    """The server answers the first request after the time limit; each reply holds the step of its
    request."""
    waits = [0.6, 0.0]

    def answer(connection):
        connection.send(packed({"action_horizon": 1}))
        for message in connection:
            time.sleep(waits.pop(0))
            step = int(message[-1])
            connection.send(packed({"actions": np.full((1, 1), step, np.float32)}))

    with answering(answer) as url:
        remote = RemotePolicy(url, reply_seconds=0.3)
        with pytest.raises(ServingError, match=r"no reply in 0\.3 s"):
            remote.infer({"step": 1})
        assert remote.infer({"step": 2})["actions"] == [[2]]
        remote.close()


def test_no_server():
    with pytest.raises(ServingError, match="cannot connect"):
        RemotePolicy("ws://127.0.0.1:9")
    with pytest.raises(ServingError, match="cannot connect"):
        RemotePolicy("nonsense")


def test_what_is_no_policy_server():
    def answer(connection):
        connection.send(b"\x91\x01")

    with answering(answer) as url, pytest.raises(ServingError, match="not a policy server"):
        RemotePolicy(url)


def test_a_server_that_comes_back():
    """The robot holds, and after a reset goes on with the server that is there now."""
    actor, contract = tiny_actor()
    settings = FAST._replace(buckets=(1,))
    with served(actor, contract, settings) as first:
        broker = ChunkBroker(RemotePolicy(first.url), execute_steps=2)
        for step in range(2):
            assert not broker.infer(observation(step))["imagewam/held"]
    assert broker.infer(observation())["imagewam/held"]
    with served(actor, contract, settings._replace(port=first.port)):
        assert broker.infer(observation())["imagewam/held"]
        broker.reset()
        assert not broker.infer(observation())["imagewam/held"]
        broker.close()


def test_a_token():
    settings = FAST._replace(tokens={"arm": "0123456789abcdef"}, buckets=(1,))
    with served(*tiny_actor(), settings) as running:
        with pytest.raises(ServingError, match="401"):
            RemotePolicy(running.url, "0123456789abcdeg")
        remote = RemotePolicy(running.url, "0123456789abcdef")
        assert remote.infer(observation())["actions"].shape == (4, 4)
        remote.close()


def test_neither_jax_nor_flax_is_imported():
    code = "import sys, imagewam_jax.client.broker, imagewam_jax.client.remote\n"
    code += "print({'jax', 'flax', 'jaxtyping', 'absl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
