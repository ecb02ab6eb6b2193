"""What a server remembers of the robots that talk to it."""

import collections
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

_SESSIONS_OF_A_CONNECTION = 64  # the one that was used longest ago is forgotten
_RATE_SECONDS = 10.0  # over which requests are counted


class Session:
    """One robot in one episode after the other. `label` is for people to read.

    What is seen last is kept, so that the status page can show it.
    """

    def __init__(self, label: str):
        self.label = label
        self.step = 0  # that its next request has, unless it says so
        self.chunks = 0
        self.prompt = ""
        self.images: UInt8[np.ndarray, "camera h w 3"] | None = None
        self.actions: Float[np.ndarray, "s a"] | None = None
        self.last_total_ms: float | None = None
        self._answered: collections.deque[float] = collections.deque(maxlen=1000)

    def reset(self) -> None:
        """Begin another episode."""
        self.step = 0

    def answered(self) -> None:
        """Count a request that was answered."""
        self.chunks += 1
        self._answered.append(time.monotonic())

    def rate(self) -> float:
        """Requests answered per second, of late."""
        since = time.monotonic() - _RATE_SECONDS
        return sum(when > since for when in self._answered) / _RATE_SECONDS

    def idle_seconds(self) -> float | None:
        return time.monotonic() - self._answered[-1] if self._answered else None


class Sessions:
    """The sessions of one connection: its own, and those that its requests name.

    A name is of this connection alone: a robot that connects again begins anew.
    """

    def __init__(self, peer: str, client: str):
        self._label = f"{client} {peer}".strip()
        self._of: collections.OrderedDict[str, Session] = collections.OrderedDict()

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._of.values()))

    def __getitem__(self, name: str) -> Session:
        if name not in self._of:
            self._of[name] = Session(f"{self._label} {name}".strip())
        self._of.move_to_end(name)
        if len(self._of) > _SESSIONS_OF_A_CONNECTION:
            self._of.popitem(last=False)
        return self._of[name]


def timing(**milliseconds: Any) -> dict[str, Any]:
    """Plain numbers rounded to a microsecond: clients cut every array of a reply into steps."""
    return {
        name: round(float(value), 3) if isinstance(value, float) else int(value)
        for name, value in milliseconds.items()
        if value is not None
    }
