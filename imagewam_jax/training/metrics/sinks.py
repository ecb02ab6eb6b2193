"""Rows of metrics on their way to the places that keep them: JSON lines, TensorBoard, W&B.

A row has a step, a kind such as "train", and numbers by name.
"""

import contextlib
import json
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import jax
import numpy as np

# These two parts of TensorBoard import neither TensorFlow nor PyTorch, which its EventFileWriter
# and tensorboardX import wherever they are installed.
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.errors import ConfigError
from imagewam_jax.files import writing

WANDB_ID_FILE = "wandb_run_id"


class Sink(Protocol):
    """Takes rows, one after another, from one thread."""

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class MetricsWriter:
    """Writes rows to all sinks. Without sinks, as on all hosts but the first, it does nothing.

    A thread of its own waits for the device, so that the training loop never does.
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
        """Writes the means of `rows`, which the device may still be computing, and `extra`.

        Rows with a number that is not finite are counted, as `not_finite`, and left out of the
        means as long as there are others. Raises what went wrong with an earlier row.
        """
        for done in [future for future in self._writing if future.done()]:
            self._writing.remove(done)
            done.result()
        if self._sinks:
            self._writing.append(self._thread.submit(self._write, kind, step, rows, extra or {}))

    def flush(self) -> None:
        """Waits until all rows are written; raises what went wrong."""
        for future in self._writing:
            future.result()

    def close(self) -> None:
        """Writes what is left and closes the sinks; raises what went wrong."""
        self._thread.shutdown()
        with contextlib.ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close)
            self.flush()

    def _write(self, kind, step, rows, extra) -> None:
        rows = jax.device_get(list(rows))
        finite = [row for row in rows if np.isfinite(list(row.values())).all()]
        if len(finite) < len(rows):
            extra = {"not_finite": len(rows) - len(finite), **extra}
        rows = finite or rows
        names = rows[0] if rows else ()
        values = {name: float(np.mean([row[name] for row in rows])) for name in names} | extra
        for sink in self._sinks:
            sink.write(kind, step, values)
        self.latest[kind] = values


class JsonLines:
    """The metrics file of a run: a JSON object per row, on disk as soon as it is written."""

    def __init__(self, workdir: Path, *, first_step: int):
        """Drops rows of steps after `first_step`, which a killed run may have left."""
        path = workdir / METRICS_FILE
        rows: list[dict[str, Any]] = read_metrics(path)
        self.kept = [row for row in rows if row["step"] <= first_step]
        self.dropped = [row for row in rows if row["step"] > first_step]
        temporary = path.with_suffix(".tmp")
        self._path = path
        with writing(path):
            temporary.write_text("".join(json.dumps(row) + "\n" for row in self.kept))
            temporary.replace(path)
            self._file = path.open("a", buffering=1)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        with writing(self._path):
            self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")

    def close(self) -> None:
        with writing(self._path):
            self._file.close()


class EventFile:
    """A new TensorBoard event file in a folder.

    TensorBoard then hides what earlier files of the folder have of `first_step` and later steps,
    which a killed run may have left.
    """

    def __init__(self, folder: Path, *, first_step: int):
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._path = folder / name
        with writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(self._path.open("wb"))
            self._add(file_version="brain.Event:2")
            self._add(step=first_step, session_log=SessionLog(status=SessionLog.START))

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Adds a scalar <kind>/<name> for each value, which TensorBoard can show at once."""
        with writing(self._path):
            for name, value in values.items():
                scalar = Summary.Value(tag=f"{kind}/{name}", simple_value=value)
                self._add(step=step, summary=Summary(value=[scalar]))
            self._records.flush()

    def close(self) -> None:
        with writing(self._path):
            self._records.close()

    def _add(self, **fields: Any) -> None:
        self._records.write(Event(wall_time=time.time(), **fields).SerializeToString())


class WandbSink:
    """A run of a Weights & Biases project, which a resumed run continues.

    Rows have their step as a number like any other: a run that repeats steps may write them again,
    which W&B's own step counter would refuse.
    """

    def __init__(self, project: str, workdir: Path, config: Mapping[str, Any]):
        wandb = import_wandb(project)
        try:
            self._run = wandb.init(
                project=project,
                id=wandb_run_id(workdir),
                name=workdir.name,
                resume="allow",
                dir=workdir,
                config=dict(config),
            )
        except wandb.Error as error:
            raise ConfigError(f"watch.wandb is {project!r}: {error}") from error
        self._run.define_metric("*", step_metric="step")

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step} | {f"{kind}/{name}": v for name, v in values.items()})

    def close(self) -> None:
        self._run.finish()


def import_wandb(project: str) -> ModuleType:
    """Import the library, logged in where it has to be.

    ConfigError: it is not installed, or cannot log in.
    """
    try:
        import wandb
    except ImportError as error:
        raise ConfigError(
            f"watch.wandb is {project!r}, and the library is not installed: pip install wandb"
        ) from error
    online = wandb.setup().settings.mode == "online"
    try:
        known = not online or wandb.login(prompt=False)
    except wandb.Error as error:
        raise ConfigError(f"watch.wandb is {project!r}: {error}") from error
    if not known:
        raise ConfigError(
            f"watch.wandb is {project!r}, and there is no API key: run `wandb login`, or set "
            "WANDB_MODE=offline and `wandb sync` later"
        )
    return wandb


def wandb_run_id(workdir: Path) -> str:
    """The id by which W&B knows a run's folder: made once and kept in the folder."""
    file = workdir / WANDB_ID_FILE
    if not file.exists() or not file.read_text():
        file.write_text(secrets.token_hex(8))
    return file.read_text()
