"""From chunks to one action per control step, without a stall where the policy is fast enough.

`ChunkBroker.infer` is called once per control step, with what the robot sees, and gives the action
of that step, as openpi's `ActionChunkBroker` does. Modes (docs/spec/serving.md, 5):

- sync: asks when `execute_steps` actions are executed, and waits for the answer.
- aligned: asks while the actions of the chunk before are executed. Of the answer it leaves out
  those whose time has passed.
- ensemble: asks as often as it is answered, and executes the mean of what all chunks say.
- rtc_trained, rtc_guided: as aligned, and each chunk goes on from the actions that are executed
  while it is computed (docs/spec/real_time.md, 1 and 2). The policy must offer it.

A robot whose source fails holds until `reset`: relative dimensions are 0, absolute ones stay where
they were. Clocks of two machines are never compared: delays are measured here.
"""

import collections
import logging
import math
import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from imagewam_jax.client.chunks import AlignedChunks, EnsembledChunks
from imagewam_jax.client.source import ChunkSource
from imagewam_jax.errors import ConfigError, ServingError, UserError
from imagewam_jax.wire import protocol

_LOG = logging.getLogger(__name__)
HELD = "imagewam/held"  # in what `infer` gives: why the robot holds, or ""
_COLD = 2  # turnarounds that are not counted: connections and caches are new
_REMEMBERED, _RECENT = 100, 10  # turnarounds


class _Asked(NamedTuple):
    """A request that was sent: the step of its observation, and what will be the answer."""

    origin: int
    since: float
    answer: "Future[tuple[dict[str, Any], float]]"


class ChunkBroker:
    """The action of every step, from a source of chunks.

    held: why the robot holds; "" while it does not. fallbacks: requests that were waited for
    although the mode does not, since answers take longer than a chunk has actions to spare.
    """

    def __init__(
        self,
        source: ChunkSource,
        *,
        mode: str = "sync",
        execute_steps: int | None = None,
        control_hz: float | None = None,
        relative: Collection[bool] | None = None,
        refill_seconds: float | None = None,
        max_age_seconds: float = math.inf,
        blend: int = 0,
        blend_dims: Collection[int] = (),
        newest_dims: Collection[int] = (),
    ):
        """What is None is as the source's metadata say.

        execute_steps: of a chunk, before the next one is asked for. relative: per action dimension,
        whether it is a displacement. refill_seconds: ask when no more is left to execute; by
        default what is left after `execute_steps`. max_age_seconds: hold if the newest chunk was
        asked for longer ago. blend, blend_dims: see `AlignedChunks`; newest_dims: see
        `EnsembledChunks`.
        ConfigError: a value is missing, or beyond its range.
        """
        about = source.metadata
        _check_mode(mode, about)
        self._source, self._mode = source, mode
        self._horizon = int(about["action_horizon"])
        if execute_steps is None:
            execute_steps = about.get("execute_steps") or self._horizon
        self._execute = int(execute_steps)
        if not 1 <= self._execute <= self._horizon:
            raise ConfigError(f"execute_steps is {self._execute}, expected 1 to {self._horizon}")
        hz = control_hz or about.get("control_hz")
        if mode != "sync" and not hz:
            raise ConfigError(f"control_hz: the mode {mode!r} needs it, the source does not say it")
        if hz and hz < 0:
            raise ConfigError(f"control_hz is {hz}, expected more than 0")
        self._step_seconds = 1 / hz if hz else math.nan
        self._goes_on = mode in protocol.REAL_TIME_MODES
        self._max_delay = self._horizon - self._execute
        if self._goes_on:
            self._max_delay = min(self._max_delay, int(about["max_delay"]))
        self._relative = np.asarray(_relative(relative, about), bool)
        self._refill = refill_seconds
        if refill_seconds is None:
            self._refill = (self._horizon - self._execute) * self._step_seconds
        self._max_age = max_age_seconds
        self._blend, self._blend_dims, self._newest_dims = blend, blend_dims, newest_dims
        self._turnarounds: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)
        self._answers = 0
        self._worker = ThreadPoolExecutor(1, "chunks")
        self.fallbacks = 0
        self._begin()

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """`actions` [action dimension] of this step, in real units, and under HELD why the robot
        holds, or "".

        RequestRefused, ServingError or MessageError: there is no answer, and the robot has not
        moved yet.
        """
        if not self.held:
            try:
                self._provide(observation)
            except UserError as error:
                if self._last is None:
                    raise
                self._hold(str(error))
        action = None if self.held else self._chunks.take()
        if action is None:
            self._hold("no action is left")
            action = np.where(self._relative, 0, self._last).astype(self._last.dtype)
        self._last = action
        return {protocol.ACTIONS: action, HELD: self.held}

    def reset(self) -> None:
        """Begins another episode. What was asked for in this one is not executed in the next."""
        self._worker.submit(self._source.reset)
        self._begin()

    def close(self) -> None:
        """Ends the source, after a request that it may be answering."""
        self._worker.submit(self._source.close)
        self._worker.shutdown()

    @property
    def delay_steps(self) -> int:
        """Control steps that the slowest of the last ten answers took; 0: it is not known."""
        recent = list(self._turnarounds)[-_RECENT:]
        known = recent and not math.isnan(self._step_seconds)
        return math.ceil(max(recent) / self._step_seconds) if known else 0

    def _begin(self) -> None:
        if self._mode == "ensemble":
            self._chunks = EnsembledChunks(newest_dims=self._newest_dims)
        else:
            self._chunks = AlignedChunks(blend=self._blend, blend_dims=self._blend_dims)
        self._asked: _Asked | None = None  # a request without its answer
        self._origin, self._newest_since = 0, math.inf
        self._last: np.ndarray | None = None
        self.held = ""

    def _hold(self, why: str) -> None:
        """Holds until `reset`."""
        if not self.held:
            self.held = why
            _LOG.warning("the robot holds at step %d: %s", self._chunks.step, why)

    def _provide(self, observation: Mapping[str, Any]) -> None:
        """Takes the answer that has come, and asks for the next chunk when it is time.

        ServingError: the source failed, or the newest chunk is too old.
        """
        if self._asked and self._asked.answer.done():
            self._take_answer()
        is_slow = self.delay_steps > self._max_delay
        is_fallback = is_slow and self._mode != "sync"
        is_sync = is_fallback or self._mode == "sync"
        if self._asked is None and self._is_due(is_sync):
            self.fallbacks += is_fallback
            self._ask(observation, goes_on=self._goes_on and not is_sync)
            if is_sync or self._last is None:
                self._take_answer()
        elif self._asked and is_sync and len(self._chunks) == 0:  # it was not to be waited for
            self._take_answer()
        if time.monotonic() - self._newest_since > self._max_age:
            raise ServingError(f"the newest chunk was asked for more than {self._max_age:g} s ago")

    def _is_due(self, is_sync: bool) -> bool:
        left = len(self._chunks)
        if left == 0:
            return True
        if is_sync:
            return self._chunks.step - self._origin >= self._execute
        if self._mode == "ensemble":
            return True
        turnaround = max(self._turnarounds, default=0.0) + self._step_seconds
        return left * self._step_seconds <= max(self._refill, turnaround)

    def _ask(self, observation: Mapping[str, Any], goes_on: bool) -> None:
        # The robot may write its next image where this one is.
        request = {
            key: value.copy() if isinstance(value, np.ndarray) else value
            for key, value in observation.items()
        }
        request.setdefault(protocol.STEP, self._chunks.step)
        if goes_on and len(self._chunks):
            left = self._chunks.left
            request[protocol.PREV_ACTIONS] = left.copy()
            request[protocol.DELAY] = min(self.delay_steps, len(left))
            request[protocol.EXECUTE] = self._execute
        answer = self._worker.submit(self._answer, request)
        self._asked = _Asked(self._chunks.step, time.monotonic(), answer)

    def _answer(self, request: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
        """A reply, and when it came."""
        return self._source.infer(request), time.monotonic()

    def _take_answer(self) -> None:
        """Waits for the answer, if it has not come, and takes its chunk."""
        asked, self._asked = self._asked, None
        reply, came = asked.answer.result()
        actions = np.asarray(reply.get(protocol.ACTIONS))
        if actions.shape != (self._horizon, len(self._relative)) or not np.isfinite(actions).all():
            raise ServingError(
                f"the source answered {actions.dtype} {list(actions.shape)}, expected finite "
                f"numbers [{self._horizon}, {len(self._relative)}]"
            )
        self._answers += 1
        if self._answers > _COLD:
            self._turnarounds.append(came - asked.since)
        self._chunks.add(actions, asked.origin)
        self._origin, self._newest_since = asked.origin, asked.since


def _check_mode(mode: str, about: Mapping[str, Any]) -> None:
    """ConfigError: there is no such mode, or the source does not offer it."""
    known = (*protocol.MODES, *protocol.REAL_TIME_MODES)
    if mode not in known:
        raise ConfigError(f"mode is {mode!r}, expected one of {known}")
    offered = about.get("modes", ())
    if mode in protocol.REAL_TIME_MODES and mode not in offered:
        raise ConfigError(f"mode is {mode!r}, the source offers {list(offered)}")


def _relative(given: Collection[bool] | None, about: Mapping[str, Any]) -> Collection[bool]:
    """Whether each dimension is a displacement: to hold, zeros would move an absolute one."""
    relative = about.get("action_relative") if given is None else given
    if relative is None:
        raise ConfigError("relative: the source does not say which dimensions are displacements")
    if len(relative) != about["action_dim"]:
        raise ConfigError(f"relative: {len(relative)} flags for {about['action_dim']} dimensions")
    return relative
