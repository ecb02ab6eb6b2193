"""What a training loop reports while it runs: metrics, goodput, a progress bar, traces."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from imagewam_jax.errors import ConfigError
from imagewam_jax.training.metrics.goodput import WallTime, earlier_seconds, table
from imagewam_jax.training.metrics.profiler import Profiler
from imagewam_jax.training.metrics.sinks import (
    EventFile,
    JsonLines,
    MetricsWriter,
    Sink,
    WandbSink,
    import_wandb,
)
from imagewam_jax.training.metrics.work import Window, Work, device_memory

PROFILE_FOLDER = "profile"
SHOWN = ("target_loss", "action_loss", "samples_per_second", "mfu")  # beside the progress bar
LOG_SECONDS = 30.0  # between two lines of the progress bar where they go to a file


class Watch:
    """The metrics, the account of time, the progress bar and the profiler of one process.

    The first process of a run writes and shows; the others only trace steps for the profiler.

        with watch:
            for number in watch.steps(last):
                with watch.phase("data_wait"):
                    batch = next(batches)
                state, metrics = step(state, batch)  # does not wait for the device
                watch.dispatched(metrics)
                watch.log(number)  # this and what follows is not done at every step
                with watch.pause("checkpoints"):
                    save(state)
                watch.account(number)
    """

    def __init__(
        self, config: Mapping[str, Any], workdir: Path, first_step: int, work: Work, began: float
    ):
        """`config` is that of the run; `first_step` is the number of steps that are done already;
        `began` is the `time.perf_counter()` at which the start-up began."""
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
        if any(earlier.values()):  # lost time was read from rows that have just been dropped
            self.account(first_step)

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        """Writes what is left and prints the account of time."""
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
        """The numbers of the steps to take, with a progress bar."""
        self._bar = tqdm(
            range(self._done, last),
            initial=self._done,
            total=last,
            unit="step",
            disable=not self._writes,
            mininterval=0.1 if sys.stderr.isatty() else LOG_SECONDS,
        )
        for number in self._bar:
            with self.phase("profile"):
                self._profiler.before_step(number + 1, self._running)
            yield number + 1

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Time spent inside counts for one of `goodput.PHASES`, not for steps."""
        return self._wall.phase(name)

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Like `phase`, for what happens between two steps: first waits for the step before."""
        self._finish()
        with self.phase(name):
            yield

    def dispatched(self, metrics: Mapping[str, jax.Array]) -> None:
        """Note that a step was given to the device, after waiting for the step before.

        So one step runs while the next is prepared; with more of them, times would mean nothing.
        """
        self._finish()
        self._running = metrics
        self._window.rows.append(metrics)
        self._done += 1

    def log(self, step: int, extra: Mapping[str, float] | None = None) -> None:
        """Writes the means of the metrics since the last call, with speed and memory."""
        values = self._window.speed() | device_memory() | dict(extra or {})
        self._writer.write("train", step, self._window.rows, values)
        self._window = Window(self._wall, self._work)
        if self._bar is not None:
            latest = self._writer.latest.get("train", {})
            shown = {name: f"{latest[name]:.3g}" for name in SHOWN if name in latest}
            self._bar.set_postfix(shown, refresh=False)
        if not self._logged:
            self.account(step)  # so the start-up is recorded even if the run is killed soon
        self._logged = True

    def write(self, kind: str, step: int, rows: Sequence[Mapping[str, jax.Array]]) -> None:
        """Writes the means of `rows`."""
        self._writer.write(kind, step, rows)

    def flush(self) -> None:
        """Waits until all rows are where they are kept."""
        self._writer.flush()

    def account(self, step: int) -> dict[str, float]:
        """Writes where the time has gone until now, and returns it.

        Call it with each checkpoint: a resumed run knows its earlier processes only by these rows.
        """
        row = self._wall.row()
        self._writer.write("goodput", step, extra=row)
        return row

    def _finish(self) -> None:
        if self._running is not None:
            jax.block_until_ready(self._running)
            self._running = None
            self._wall.step_done()


def check_watch(section: Mapping[str, Any]) -> None:
    """Check the config's section `watch`. ConfigError: a value is out of range, or W&B fails."""
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
    """Open the sinks of a run; also returns the seconds by phase of its earlier processes."""
    lines = JsonLines(workdir, first_step=first_step)
    sinks: list[Sink] = [lines, EventFile(workdir / "tensorboard", first_step=first_step + 1)]
    project = config["watch"]["wandb"]
    if project:
        sinks.append(WandbSink(project, workdir, config))
    return sinks, earlier_seconds(lines.kept, lines.dropped)
