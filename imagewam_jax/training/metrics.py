"""Where the numbers of a run go: JSON lines and TensorBoard, without waiting for the device."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np

from imagewam_jax.policies.metrics import METRICS_FILE, read_metrics
from imagewam_jax.training.tensorboard import EventFile


class NoMetrics:
    """In place of a `MetricsWriter` on all hosts but the first."""

    latest: Mapping[str, float] = MappingProxyType({})

    def write(self, *_) -> None:
        pass

    def close(self) -> None:
        pass


class MetricsWriter:
    """Writes rows of numbers, each under a step and a kind such as "train".

    A thread of its own waits for the device, so that the loop never does.
    """

    def __init__(self, workdir: Path, *, first_step: int = 0):
        """Rows behind `first_step`, which a killed run may have left, are dropped."""
        path = workdir / METRICS_FILE
        kept = [row for row in read_metrics(path) if row["step"] <= first_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)
        self._board = EventFile(workdir / "tensorboard", first_step=first_step + 1)
        self._thread = ThreadPoolExecutor(1)
        self._writing: list[Future] = []
        self.latest: dict[str, float] = {}  # what was last written

    def write(
        self,
        kind: str,
        step: int,
        rows: Sequence[Mapping[str, jax.Array]],
        extra: Mapping[str, float] | None = None,
    ) -> None:
        """Writes the means of `rows`, which may still be being computed, and `extra`."""
        for done in [future for future in self._writing if future.done()]:
            self._writing.remove(done)
            done.result()  # raises what went wrong
        self._writing.append(self._thread.submit(self._write, kind, step, rows, extra or {}))

    def close(self) -> None:
        """Writes what is left; raises what went wrong."""
        self._thread.shutdown()
        self._file.close()
        self._board.close()
        for future in self._writing:
            future.result()

    def _write(self, kind, step, rows, extra) -> None:
        rows = jax.device_get(list(rows))
        values = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        values |= extra
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
        self._board.flush()
        self.latest |= values
