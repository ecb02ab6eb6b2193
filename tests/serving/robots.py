"""Servers on loopback, and robots that speak to them by the letter of the protocol."""

import asyncio
import contextlib
import datetime
import functools
import ipaddress
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from websockets.sync.client import connect

from imagewam_jax.policy.policy import Policy
from imagewam_jax.preprocess.inputs import Observations
from imagewam_jax.serving.acting import Actor, make_actor
from imagewam_jax.serving.contract import Contract
from imagewam_jax.serving.listening import listen, url
from imagewam_jax.serving.server import PolicyServer
from imagewam_jax.serving.settings import Settings
from imagewam_jax.wire.messages import Limits, unpack
from tests.training.tiny import INSTRUCTIONS, trained_run
from tests.wire.frames import packed

FAST = Settings(port=0, rate=1e6, buckets=(1, 2, 4, 8))
LIMITS = Limits(2**20, items=4096, containers=4096)


@functools.cache
def tiny_actor(**options: Any) -> tuple[Actor, Contract]:
    """The trained policy of the tests; chunks that go on from others have tests of their own."""
    return make_actor(trained_run(), **{"real_time": "off", **options})


class Served(NamedTuple):
    server: PolicyServer
    loop: asyncio.AbstractEventLoop
    port: int
    url: str

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
        address = url(listening, settings.certificate is not None)
        started: list[Served] = []
        failed: list[BaseException] = []
        ready = threading.Event()

        async def run() -> None:
            server = PolicyServer(lambda: (actor, contract), settings)
            started.append(Served(server, asyncio.get_running_loop(), port, address))
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


def acted(policy: Policy, seen: list[dict[str, Any]], steps: list[int], size: int) -> np.ndarray:
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


def write_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate that signs itself, for the loopback address, and its key."""
    pytest.importorskip("cryptography")
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths
