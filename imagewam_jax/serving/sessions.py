"""What a server remembers of the robots that talk to it."""

import collections
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from imagewam_jax.errors import InputError
from imagewam_jax.policy.real_time import Running
from imagewam_jax.serving.acting import Chunk, Row
from imagewam_jax.serving.recorder import Recorder, SessionRecorder
from imagewam_jax.serving.requests import Request, ResetRequest, SentRunning
from imagewam_jax.wire import protocol

_SESSIONS_OF_A_CONNECTION = 64  # the one that was used longest ago is forgotten
_KEPT_CHUNKS = 4  # of a session, that the next may go on from
_RATE_SECONDS = 10.0  # over which requests are counted


class Session:
    """One robot in one episode after the other. `label` is for people to read.

    What is seen last is kept, so that the status page can show it.
    """

    def __init__(self, label: str, recorder: SessionRecorder | None = None):
        self.label = label
        self._recorder = recorder
        self.step = 0  # the step of the next request, unless the request gives one
        self.chunks = 0
        self.prompt = ""
        self.images: UInt8[np.ndarray, "camera h w 3"] | None = None
        self.actions: Float[np.ndarray, "s a"] | None = None
        self.last_total_ms: float | None = None
        self._sent: dict[int, Float[np.ndarray, "s a"]] = {}  # of this episode, the last chunks
        self._answered: collections.deque[float] = collections.deque(maxlen=1000)

    def reset(self) -> None:
        """Begin another episode."""
        self.step = 0
        self._sent = {}
        self.end()

    def end(self) -> None:
        """The episode is over, and with it perhaps the session."""
        if self._recorder is not None:
            self._recorder.ended()

    def begin(self, request: Request | ResetRequest) -> dict[str, Any] | None:
        """Take a request. The reply to one that asks for no chunk; None: it asks for one."""
        if isinstance(request, ResetRequest):
            self.reset()
            return dict(protocol.RESET_REPLY)
        if request.reset:
            self.reset()
        if not request.observe:
            return None
        if self._recorder is not None:
            self._recorder.observed(request)
        return {}

    def row(self, request: Request, seed: int) -> Row:
        """What the chunk of a request is computed from; `seed` counts unless it has its own.

        InputError: it is to go on from a chunk that this session was not sent, or not lately.
        """
        running = request.running
        if isinstance(running, SentRunning):
            if running.chunk not in self._sent:
                raise InputError(
                    f"{protocol.PREV_CHUNK}: expected one of the last chunks of this episode, "
                    f"{list(self._sent)}, got {running.chunk}"
                )
            rest = self._sent[running.chunk][running.executed :]
            running = Running(rest, running.delay, running.execute)
        seeds = (seed,) if request.seed is None else request.seed
        step = self.step if request.step is None else request.step
        return Row(request.images, request.state, request.prompt, seeds, step, running)

    def answer(
        self, row: Row, chunk: Chunk, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Count a row as answered. The reply to it, which has `more` after the actions."""
        reply = {
            protocol.ACTIONS: chunk.actions,
            **(more or {}),
            protocol.CHUNK_ID: self.chunks,
            protocol.CLIPPED: chunk.clipped,
        }
        self.step = row.step + 1
        self.prompt, self.images, self.actions = row.prompt, row.images, chunk.actions
        self._sent[self.chunks] = chunk.actions
        self._sent.pop(self.chunks - _KEPT_CHUNKS, None)
        self._answered.append(time.monotonic())
        if self._recorder is not None:
            self._recorder.answered(row, chunk, self.chunks)
        # Last: once it is not 0, the status page reads the rest, in another thread.
        self.chunks += 1
        return reply

    def rate(self) -> float:
        """Requests answered per second, of late."""
        since = time.monotonic() - _RATE_SECONDS
        return sum(when > since for when in list(self._answered)) / _RATE_SECONDS

    def idle_seconds(self) -> float:
        """Seconds since the last chunk, of which there must be one."""
        return time.monotonic() - self._answered[-1]


class Sessions:
    """The sessions of one connection: its own, and those that its requests name.

    A name is of this connection alone: a robot that connects again begins anew.
    recorder: what records sessions that begin from now on, if anything does.
    """

    def __init__(self, peer: str, client: str):
        self.recorder: Recorder | None = None
        self._peer, self._client = peer, client
        self._of: collections.OrderedDict[str, Session] = collections.OrderedDict()

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._of.values()))

    def __getitem__(self, name: str) -> Session:
        if name not in self._of:
            self._of[name] = self._begun(name)
        self._of.move_to_end(name)
        if len(self._of) > _SESSIONS_OF_A_CONNECTION:
            _, forgotten = self._of.popitem(last=False)
            forgotten.end()
        return self._of[name]

    def _begun(self, name: str) -> Session:
        robot = f"{self._peer} {name}".strip()
        recorder = self.recorder and self.recorder.session(robot, self._client)
        return Session(f"{self._client} {robot}".strip(), recorder)
