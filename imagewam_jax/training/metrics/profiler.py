"""Traces some steps with the JAX profiler, for TensorBoard's profile page or Perfetto.

Each host traces itself: all of them trace the steps that the config names, and a host that gets a
signal traces its next steps.
"""

import contextlib
import signal
import threading
from pathlib import Path
from typing import Any

import jax


class Profiler:
    """Traces `count` steps from the one with number `first`, and `on_signal` steps from the next
    one when the process gets SIGUSR1. A count of 0 means never.

    A trace is the folder <folder>/<number of its first step>. An unfinished trace is written when
    the run ends; a trace that cannot be written is reported and does not end the run.
    """

    def __init__(self, folder: Path, first: int, count: int, on_signal: int):
        self._folder, self._steps, self._on_signal = folder, range(first, first + count), on_signal
        self._requested = False
        self._end: int | None = None  # the first step that is not part of the trace
        self._tracing = False  # stays so where a trace could not begin
        # Only the main thread may handle signals; elsewhere only the config's steps are traced.
        self._handles = on_signal > 0 and threading.current_thread() is threading.main_thread()
        if self._handles:
            self._handler = signal.signal(signal.SIGUSR1, self._request)

    def before_step(self, number: int, running: Any = None) -> None:
        """Begins or ends a trace, if it is time to.

        It then waits for `running`, arrays of the step before, so that a trace has its steps and
        no others.
        """
        if self._end is not None and number >= self._end:
            jax.block_until_ready(running)
            self._stop()
        if self._end is None and (self._requested or number in self._steps):
            jax.block_until_ready(running)
            self._end = number + self._on_signal if self._requested else self._steps.stop
            self._start(number)

    def close(self) -> None:
        """Ends the trace that is running, if any."""
        if self._handles:
            signal.signal(signal.SIGUSR1, self._handler)
        if self._end is not None:
            self._stop()

    def _request(self, *_: Any) -> None:
        self._requested = True

    def _start(self, number: int) -> None:
        folder = self._folder / str(number)
        if jax.process_count() > 1:  # hosts that share a disk may also share a name
            folder = folder / f"process_{jax.process_index()}"
        with _reported("begin"):
            jax.profiler.start_trace(folder)
            self._tracing = True

    def _stop(self) -> None:
        # A signal during a trace asks for what there is already.
        self._end, self._requested = None, False
        if self._tracing:
            self._tracing = False
            with _reported("write"):
                jax.profiler.stop_trace()


@contextlib.contextmanager
def _reported(what: str):
    try:
        yield
    except (OSError, RuntimeError) as error:
        print(f"could not {what} a profiler trace: {error}")
