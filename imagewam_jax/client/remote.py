"""A policy server as a source of action chunks."""

import contextlib
import ssl
from collections.abc import Mapping
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import ClientConnection, connect

from imagewam_jax.errors import MessageError, RequestRefused, ServingError
from imagewam_jax.wire import protocol
from imagewam_jax.wire.messages import Limits, pack, unpack

_LARGEST_REPLY = 2**22
# Of what a server sends: its metadata list instructions and describe every camera.
LIMITS = Limits(array_bytes=2**20, items=4096, containers=4096)


class RemotePolicy:
    """A connection to a server, with time limits for everything.

    A reply that comes too late would be taken for that of the next request. So a connection ends
    with the first request that is not answered, and the next request makes a new one.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        *,
        connect_seconds: float = 10.0,
        metadata_seconds: float = 600.0,
        reply_seconds: float = 2.0,
        tls: ssl.SSLContext | None = None,
    ):
        """Connects, and waits until the server is ready.

        url: such as `ws://192.168.0.7:8000`; with `wss`, TLS. metadata_seconds: to wait until the
        server has compiled its policy. tls: for certificates that the system does not know.
        ServingError: the server cannot be reached, or refuses the token.
        """
        self._url, self._token, self._tls = url, token, tls
        self._connect_seconds = connect_seconds
        self._metadata_seconds = metadata_seconds
        self._reply_seconds = reply_seconds
        self._reset = False
        self._connection: ClientConnection | None = None
        self._closing = contextlib.ExitStack()
        self.metadata: Mapping[str, Any] = self._connect()

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A reply; see `ChunkSource`."""
        if self._connection is None:
            self.metadata = self._connect()
        if self._reset:
            request = {**request, protocol.RESET: True}
        frame = pack(request)
        try:
            self._connection.send(frame)
            answer = self._connection.recv(self._reply_seconds)
        except TimeoutError as error:
            self.close()
            raise ServingError(f"{self._url}: no reply in {self._reply_seconds:g} s") from error
        except (ConnectionClosed, OSError) as error:
            self.close()
            raise ServingError(f"{self._url}: {error}") from error
        if isinstance(answer, str):
            raise RequestRefused(f"{self._url}: {answer}")
        self._reset = False
        return self._unpacked(answer)

    def reset(self) -> None:
        """The robot begins another episode: the next request says so."""
        self._reset = True

    def close(self) -> None:
        """Ends the connection; the next request makes a new one."""
        self._connection = None
        self._closing.close()

    def _connect(self) -> dict[str, Any]:
        """The metadata that the server sends first."""
        headers = {"Authorization": f"{protocol.API_KEY} {self._token}"} if self._token else None
        try:
            connecting = connect(
                self._url,
                compression=None,
                max_size=_LARGEST_REPLY,
                additional_headers=headers,
                open_timeout=self._connect_seconds,
                close_timeout=1.0,
                ssl=self._tls,
            )
            self._connection = self._closing.enter_context(connecting)
            answer = self._connection.recv(self._metadata_seconds)
        except (OSError, InvalidHandshake, InvalidURI, ConnectionClosed) as error:
            self.close()
            raise ServingError(f"{self._url}: cannot connect: {error}") from error
        if isinstance(answer, str):
            self.close()
            raise ServingError(f"{self._url}: {answer}")
        return self._unpacked(answer)

    def _unpacked(self, frame: bytes) -> dict[str, Any]:
        try:
            return unpack(frame, LIMITS)
        except MessageError as error:
            self.close()
            raise ServingError(f"{self._url}: not a policy server: {error}") from error
