"""Where the wall time of a run went, over all processes that ran it one after another.

Goodput is the share of wall time spent in steps that count: not in starting, waiting for data,
checkpoints or validation, and not in steps that a killed process took and the next one repeats.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

# Every second of a run belongs to one of these.
PHASES = {
    "startup": "start-up",  # opening data, restoring, compiling, until the first step has ended
    "steps": "steps",
    "data_wait": "waiting for data",
    "checkpoints": "checkpoints",  # the part that steps wait for
    "validation": "validation",
    "profile": "profiler",
    "lost": "lost to kills",  # work of earlier processes that had to be done again
}


class WallTime:
    """Counts the seconds of a run by phase. At any time it is in exactly one phase."""

    def __init__(
        self,
        earlier: Mapping[str, float] | None = None,
        *,
        before: float = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """`earlier` are the seconds by phase of the processes before this one; `before` is for how
        many seconds this one has been starting already."""
        self.steps = 0  # done since the start-up
        self._seconds = dict.fromkeys(PHASES, 0.0) | dict(earlier or {})
        self._seconds["startup"] += before
        self._clock, self._since, self._phase = clock, clock(), "startup"

    def step_done(self) -> None:
        """Note that the device has finished a step. The first one ends the start-up."""
        if self._phase == "startup":
            self._turn("steps")
        else:
            self.steps += 1

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time spent inside belongs to a phase, or still to the start-up."""
        if self._phase == "startup":
            yield
            return
        outer = self._turn(name)
        try:
            yield
        finally:
            self._turn(outer)

    def seconds(self) -> dict[str, float]:
        """Seconds by phase until now."""
        self._turn(self._phase)
        return dict(self._seconds)

    def row(self) -> dict[str, float]:
        """A row of metrics: `goodput`, a share, and the seconds in all and by phase."""
        seconds = self.seconds()
        wall = sum(seconds.values())
        named = {f"{name}_seconds": value for name, value in seconds.items()}
        return {"goodput": seconds["steps"] / max(wall, 1e-9), "wall_seconds": wall, **named}

    def _turn(self, phase: str) -> str:
        """Enters a phase; returns the one before."""
        now = self._clock()
        before = self._phase
        self._seconds[before] += now - self._since
        self._since, self._phase = now, phase
        return before


def table(row: Mapping[str, float]) -> str:
    """Format a `WallTime.row` for a terminal."""
    wall = max(row["wall_seconds"], 1e-9)
    seconds = {name: row[f"{name}_seconds"] for name in PHASES}
    shown = {name: value for name, value in seconds.items() if value >= 0.05}
    lines = [f"  {PHASES[k]:18}{v:10.1f} s{v / wall:8.1%}" for k, v in shown.items()]
    return "\n".join([f"goodput {row['goodput']:.1%} of {wall:.1f} s", *lines])


def earlier_seconds(
    kept: Sequence[Mapping[str, Any]], dropped: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """Sum the seconds by phase of the processes before this one, from the rows that they wrote.

    `dropped` are the rows after the checkpoint that the run resumes from: their time was lost. The
    time between a killed process's last row and the start of the next process is not known.
    """
    account = next((row for row in reversed(kept) if row["kind"] == "goodput"), None)
    seconds = {name: account[f"{name}_seconds"] if account else 0.0 for name in PHASES}
    known, lost = sum(seconds.values()), 0.0
    step = kept[-1]["step"] if kept else 0
    for row in dropped:
        if row["kind"] == "goodput":
            lost = row["wall_seconds"] - known
        elif row["kind"] == "train":
            lost += (row["step"] - step) * row.get("seconds_per_step", 0.0)
        step = row["step"]
    return seconds | {"lost": seconds["lost"] + lost}


def process_seconds() -> float:
    """Seconds since this process was started; 0 where the system does not say."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return 0.0
    # Field 22, in clock ticks since boot; field 2 is a name that may have spaces in it.
    ticks = int(stat.read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
