"""Rows of numbers on their way to sinks, without waiting for the device."""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import numpy as np

from imagewam_jax.training.metrics.sinks import Sink


class MetricsWriter:
    """Writes rows of numbers to all sinks. Without sinks, as on all hosts but one, it does nothing.

    A thread of its own waits for the device, so that the loop never does.
    """

    def __init__(self, sinks: Sequence[Sink]):
        self._sinks = sinks
        self._thread = ThreadPoolExecutor(1, "metrics")
        self._writing: list[Future] = []
        self.latest: dict[str, dict[str, float]] = {}  # the last row of each kind

    def write(
        self,
        kind: str,
        step: int,
        rows: Sequence[Mapping[str, jax.Array]] = (),
        extra: Mapping[str, float] | None = None,
    ) -> None:
        """Writes the means of `rows`, which may still be being computed, and `extra`. Raises what
        went wrong with a row before."""
        for done in [future for future in self._writing if future.done()]:
            self._writing.remove(done)
            done.result()
        if self._sinks:
            self._writing.append(self._thread.submit(self._write, kind, step, rows, extra or {}))

    def close(self) -> None:
        """Writes what is left; raises what went wrong."""
        self._thread.shutdown()
        with contextlib.ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)
            for future in self._writing:
                future.result()

    def _write(self, kind, step, rows, extra) -> None:
        rows = jax.device_get(list(rows))
        names = rows[0] if rows else ()
        values = {name: float(np.mean([row[name] for row in rows])) for name in names} | extra
        for sink in self._sinks:
            sink.write(kind, step, values)
        self.latest[kind] = values
