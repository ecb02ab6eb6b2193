"""Servers on loopback, and robots that speak to them by the letter of the protocol."""

import asyncio
import contextlib
import functools
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from websockets.sync.client import connect

from imagewam_jax.serving.acting import Actor, make_actor
from imagewam_jax.serving.contract import Contract
from imagewam_jax.serving.listening import listen
from imagewam_jax.serving.server import PolicyServer
from imagewam_jax.serving.settings import Settings
from imagewam_jax.wire.messages import Limits, unpack
from tests.training.tiny import INSTRUCTIONS, trained_run
from tests.wire.frames import packed

FAST = Settings(port=0, rate=1e6, buckets=(1, 2, 4, 8))
LIMITS = Limits(2**20, items=4096, containers=4096)


@functools.cache
def tiny_actor(**options: Any) -> tuple[Actor, Contract]:
    """The trained policy of the tests."""
    return make_actor(trained_run(), **options)


class Served(NamedTuple):
    server: PolicyServer
    loop: asyncio.AbstractEventLoop
    port: int
    scheme: str = "ws"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def get(self, path: str, headers: dict[str, str] | None = None) -> str:
        """The body of a page. HTTPError: it is not there."""
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return response.read().decode()
        except urllib.error.HTTPError as error:
            error.close()
            raise

    def wait_until_ready(self) -> None:
        while not self.server.state.is_ready:
            time.sleep(0.01)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)


@contextlib.contextmanager
def served(
    actor: Actor, contract: Contract, settings: Settings = FAST, *, wait: bool = True
) -> Iterator[Served]:
    """A server in a thread of its own, which is ready unless `wait` is false."""
    with listen(settings.host, settings.port) as listening:
        port = listening.getsockname()[1]
        started: list[Served] = []
        failed: list[BaseException] = []
        ready = threading.Event()

        async def run() -> None:
            server = PolicyServer(lambda: (actor, contract), settings)
            scheme = "wss" if settings.certificate else "ws"
            started.append(Served(server, asyncio.get_running_loop(), port, scheme))
            ready.set()
            await server.run(listening, lambda line: None)

        def main() -> None:
            try:
                asyncio.run(run())
            except BaseException as error:
                failed.append(error)
                ready.set()

        thread = threading.Thread(target=main)
        thread.start()
        ready.wait()
        try:
            if wait:
                started[0].wait_until_ready()
            yield started[0]
        finally:
            with contextlib.suppress(RuntimeError):  # it has ended
                started[0].stop()
            thread.join(30)
        assert not thread.is_alive()
        assert not failed, failed


class Robot:
    """A client that knows nothing but the protocol."""

    def __init__(self, url: str, token: str | None = None, **options: Any):
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        self._closing = contextlib.ExitStack()
        connecting = connect(
            url, compression=None, max_size=None, additional_headers=headers, **options
        )
        self.connection = self._closing.enter_context(connecting)
        self.metadata = unpack(self.connection.recv(), LIMITS)

    def ask(self, observation: dict[str, Any]) -> dict[str, Any] | str:
        """The reply, or the text of an error."""
        return self.ask_frame(packed(observation))

    def ask_frame(self, frame: bytes | str) -> dict[str, Any] | str:
        self.connection.send(frame)
        answer = self.connection.recv(60)
        return answer if isinstance(answer, str) else unpack(answer, LIMITS)

    def __enter__(self) -> "Robot":
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()


def observation(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """What a robot sees and is told: other things with each seed."""
    rng = np.random.default_rng(seed)
    return {
        "observation/image": rng.integers(0, 256, (64, 64, 3)).astype(np.uint8),
        "observation/state": rng.uniform(0, 0.5, 4),
        "prompt": INSTRUCTIONS[seed % 2],
        "imagewam/seed": seed,
        **changes,
    }
