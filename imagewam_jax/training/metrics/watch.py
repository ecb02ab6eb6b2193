"""What a training loop tells of itself, and where that goes."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from imagewam_jax.errors import ConfigError
from imagewam_jax.training.metrics.goodput import WallTime, earlier_seconds, table
from imagewam_jax.training.metrics.memory import memory
from imagewam_jax.training.metrics.profiler import Profiler
from imagewam_jax.training.metrics.progress import progress_bar, show
from imagewam_jax.training.metrics.sinks import JsonLines, Sink
from imagewam_jax.training.metrics.tensorboard import EventFile
from imagewam_jax.training.metrics.wandb_sink import WandbSink, import_wandb
from imagewam_jax.training.metrics.window import Window, Work
from imagewam_jax.training.metrics.writer import MetricsWriter

PROFILE_FOLDER = "profile"


class Watch:
    """Rows of metrics, the account of time, the progress bar and the profiler of one process.

    The first process of a run writes and shows; the others only trace.

        with watch:
            for number in watch.steps(last):
                with watch.phase("data_wait"):
                    batch = next(batches)
                state, metrics = step(state, batch)  # does not wait for the device
                watch.dispatched(metrics)
                watch.log(number)  # now and then, as is the rest
                with watch.pause("checkpoints"):
                    save(state)
                watch.account(number)
    """

    def __init__(
        self, config: Mapping[str, Any], workdir: Path, first_step: int, work: Work, began: float
    ):
        """`config` is that of the run; `first_step` steps are done already; `began` is the
        `time.perf_counter()` at which the start-up did."""
        self._writes = jax.process_index() == 0
        sinks, earlier = open_sinks(config, workdir, first_step) if self._writes else ([], {})
        self._writer = MetricsWriter(sinks)
        self._wall = WallTime(earlier, before=time.perf_counter() - began)
        self._work, self._window = work, Window(self._wall, work)
        section = config["watch"]
        folder, on_signal = workdir / PROFILE_FOLDER, section["profile_on_signal"]
        self._profiler = Profiler(folder, *section["profile"], on_signal)
        self._running: Mapping[str, jax.Array] | None = None  # of the step on the device
        self._done = first_step
        self._bar = None
        self._logged = False
        if any(earlier.values()):  # what was lost is known from rows that are not there any more
            self.account(first_step)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        """Writes what is left, and prints the account of time."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._writer.close)
            stack.callback(self._profiler.close)
            if self._bar is not None:
                self._bar.close()
            if error is None:
                self._finish()
            account = self.account(self._done)
            if self._writes:
                print(table(account))

    def steps(self, last: int) -> Iterator[int]:
        """The numbers of the steps to take."""
        self._bar = progress_bar(self._done, last, enabled=self._writes)
        for number in self._bar:
            with self.phase("profile"):
                self._profiler.before_step(number + 1, self._running)
            yield number + 1

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """The time within is not of steps, but of one of `goodput.PHASES`."""
        return self._wall.phase(name)

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """The same, for what is done between two steps: the one before is waited for."""
        self._finish()
        with self.phase(name):
            yield

    def dispatched(self, metrics: Mapping[str, jax.Array]) -> None:
        """A step has been given to the device. Waits for the one before: one step runs while the
        next is prepared; no more, or times would mean nothing."""
        self._finish()
        self._running = metrics
        self._window.rows.append(metrics)
        self._done += 1

    def log(self, step: int, extra: Mapping[str, float] | None = None) -> None:
        """Writes what there is to tell of the steps since the last time."""
        values = self._window.speed() | memory() | dict(extra or {})
        self._writer.write("train", step, self._window.rows, values)
        self._window = Window(self._wall, self._work)
        if self._bar is not None:
            show(self._bar, self._writer.latest.get("train", {}))
        if not self._logged:
            self.account(step)  # of a start-up, even if nothing else comes of it
        self._logged = True

    def write(self, kind: str, step: int, rows: Sequence[Mapping[str, jax.Array]]) -> None:
        """Writes the means of `rows`."""
        self._writer.write(kind, step, rows)

    def account(self, step: int) -> dict[str, float]:
        """Writes where the time has gone until now, and returns it: with each checkpoint, for a run
        that is resumed knows of its earlier processes by what they wrote."""
        row = self._wall.row()
        self._writer.write("goodput", step, extra=row)
        return row

    def _finish(self) -> None:
        if self._running is not None:
            jax.block_until_ready(self._running)
            self._running = None
            self._wall.step_done()


def check_watch(section: Mapping[str, Any]) -> None:
    """ConfigError unless a run can be watched as the config says."""
    profile, on_signal = section["profile"], section["profile_on_signal"]
    if len(profile) != 2 or min(*profile, on_signal) < 0:
        raise ConfigError(
            f"watch.profile is {tuple(profile)} and watch.profile_on_signal {on_signal}, expected "
            "a first step and a number of steps, and a number of steps"
        )
    if section["wandb"] and jax.process_index() == 0:
        import_wandb(section["wandb"])


def open_sinks(
    config: Mapping[str, Any], workdir: Path, first_step: int
) -> tuple[list[Sink], dict[str, float]]:
    """Where the rows of a run go, and the seconds of its processes before this one."""
    lines = JsonLines(workdir, first_step=first_step)
    sinks: list[Sink] = [lines, EventFile(workdir / "tensorboard", first_step=first_step + 1)]
    project = config["watch"]["wandb"]
    if project:
        sinks.append(WandbSink(project, workdir, config))
    return sinks, earlier_seconds(lines.kept, lines.dropped)
