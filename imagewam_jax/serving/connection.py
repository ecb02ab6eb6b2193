"""A WebSocket connection that knows how long a client has left a message unfinished."""

import time
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.frames import Frame
from websockets.protocol import Event


class Connection(ServerConnection):
    """client: the name that belongs to its token, "" if the server has no tokens."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.client = ""
        self._unfinished = 0  # bytes of a frame whose end is still to come
        self._since = time.monotonic()  # when that frame began
        self._frame_ended = False

    @property
    def address(self) -> str:
        address = self.remote_address
        return f"{address[0]}:{address[1]}" if address else "a client"

    def unfinished_seconds(self) -> float:
        """Seconds since a frame began whose end has not come; 0 between frames."""
        return time.monotonic() - self._since if self._unfinished > 0 else 0.0

    def data_received(self, data: bytes) -> None:
        begins = self._unfinished <= 0
        self._unfinished += len(data)
        self._frame_ended = False
        super().data_received(data)
        if begins or self._frame_ended:
            self._since = time.monotonic()

    def process_event(self, event: Event) -> None:
        super().process_event(event)
        self._frame_ended = True
        # The event before all frames is the HTTP request; clients wait for its answer.
        self._unfinished -= _sent_bytes(event) if isinstance(event, Frame) else self._unfinished


def _sent_bytes(frame: Frame) -> int:
    """The bytes that a client's frame is sent as: header, length, mask and data (RFC 6455, 5.2)."""
    size = len(frame.data)
    return 2 + (0 if size < 126 else 2 if size < 2**16 else 8) + 4 + size
