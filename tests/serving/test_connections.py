"""Connections from their start to their end: robots that wait, stop in a message or vanish."""

import socket
import struct
import time
import urllib.error

import pytest
from websockets.exceptions import ConnectionClosed

from tests.serving.robots import FAST, Robot, observation, served
from tests.wire.frames import packed


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
