"""Rows of several robots become batches of few sizes, one after another on the device.

Everything here runs in the event loop, but for the work itself: one thread calls JAX and nothing
else does, so the loop goes on to answer pings while a batch is computed.
"""

import asyncio
import dataclasses
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from imagewam_jax.errors import ConfigError
from imagewam_jax.serving.acting import Actor, Chunk, NotFinite, Row, program_of
from imagewam_jax.serving.metrics import Metrics

_Result = TypeVar("_Result")

GATHER_SECONDS = 0.002  # that an idle device waits for robots that are about to ask
_ACTIVE_SECONDS = 1.0  # a robot that asked so lately is expected to ask again


class DeadlineMissed(Exception):
    """The computation of a row did not begin before its deadline."""


class Answer(NamedTuple):
    """A row's chunk, the seconds that it waited and that its batch took, and the batch's sizes."""

    chunk: Chunk
    queued: float
    device: float
    rows: int
    bucket: int


@dataclasses.dataclass
class _Waiting:
    row: Row
    since: float
    deadline: float
    answer: asyncio.Future[Answer]


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """Sizes of batches in order. ConfigError: there is none, or one is below 1."""
    if not buckets or min(buckets) < 1:
        raise ConfigError(f"buckets {list(buckets)}: expected sizes of batches from 1")
    return tuple(sorted(set(buckets)))


class Batcher:
    """Gathers rows, and acts on as many as the device can take at once."""

    def __init__(self, buckets: Sequence[int], metrics: Metrics):
        self._metrics = metrics
        self._buckets = check_buckets(buckets)
        self._device = ThreadPoolExecutor(1, "device")
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._asked: dict[Hashable, float] = {}  # robot -> when it asked last

    async def compile(self, actor: Actor, say: Callable[[str], None]) -> None:
        """Compiles every size of batch for an actor, the smallest first, and says how long each
        took. `run` is to be called after this."""
        self._actor = actor
        for number, size in enumerate(self._buckets, start=1):
            programs = await self.on_device(self._actor.compile, size)
            for program, seconds in programs.items():
                self._metrics.compile_seconds.labels(f"{program}_{size}").set(seconds)
            rows = "1 robot" if size == 1 else f"{size} robots"
            took = sum(programs.values())
            say(f"compiled for {rows} in {took:.1f} s ({number} of {len(self._buckets)})")

    async def on_device(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Calls a function in the thread that calls JAX."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._device, function, *arguments)

    async def act(self, row: Row, robot: Hashable, deadline: float | None = None) -> Answer:
        """The chunk of a row. `deadline` is in seconds from now, by which it must be begun.

        DeadlineMissed: it was not. NotFinite: the actions are no numbers. Whatever else acting
        raises is a fault of the server.
        """
        now = time.monotonic()
        self._asked[robot] = now
        until = math.inf if deadline is None else now + deadline
        waiting = _Waiting(row, now, until, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        return await waiting.answer

    def forget(self, robot: Hashable) -> None:
        """A robot is gone: nothing waits for it any more."""
        self._asked.pop(robot, None)

    async def run(self) -> None:
        """Answers rows until it is cancelled."""
        while True:
            await self._gather()
            if batch := self._take():
                await self._answer(batch)

    def close(self) -> None:
        """Begins nothing new on the device."""
        self._device.shutdown(wait=False, cancel_futures=True)

    async def _gather(self) -> None:
        """Waits for a row, and then a moment for more if other robots have asked lately."""
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        end = time.monotonic() + GATHER_SECONDS
        while len(self._waiting) < min(self._active(), self._buckets[-1]):
            left = end - time.monotonic()
            if left <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                return

    def _active(self) -> int:
        since = time.monotonic() - _ACTIVE_SECONDS
        return sum(when > since for when in self._asked.values())

    def _take(self) -> list[_Waiting]:
        """The rows of the next batch: those with the earliest deadlines, then the oldest. Whoever
        is too late, or has gone, is left out."""
        now = time.monotonic()
        for each in self._waiting:
            if each.deadline < now and not each.answer.done():
                late = now - each.deadline
                each.answer.set_exception(DeadlineMissed(f"begun {1000 * late:.0f} ms too late"))
        there = [each for each in self._waiting if not each.answer.done()]
        there.sort(key=lambda each: (each.deadline, each.since))
        batch, self._waiting = there[: self._buckets[-1]], there[self._buckets[-1] :]
        return batch

    async def _answer(self, batch: list[_Waiting]) -> None:
        size = next(bucket for bucket in self._buckets if bucket >= len(batch))
        begun, rows = time.monotonic(), [each.row for each in batch]
        try:
            chunks = await self.on_device(self._actor.act, rows, size)
        except Exception as error:
            for each in batch:
                if not each.answer.done():
                    each.answer.set_exception(error)
            return
        took = time.monotonic() - begun
        self._metrics.device_seconds.labels(program_of(rows), size).observe(took)
        self._metrics.batch_rows.observe(len(batch))
        self._metrics.padding_rows.inc(size - len(batch))
        for each, chunk in zip(batch, chunks, strict=True):
            if each.answer.done():
                continue
            if isinstance(chunk, NotFinite):
                each.answer.set_exception(chunk)
            else:
                queued = begun - each.since
                each.answer.set_result(Answer(chunk, queued, took, len(batch), size))
