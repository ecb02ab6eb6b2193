"""Where rows of numbers go. A row has a step and a kind, such as "train"."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics


class Sink(Protocol):
    """Takes rows, one after another, from one thread."""

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """The metrics file of a run: a JSON object per row, on disk as soon as it is written."""

    def __init__(self, workdir: Path, *, first_step: int):
        """Rows behind `first_step`, which a killed run may have left, are dropped."""
        path = workdir / METRICS_FILE
        rows: list[dict[str, Any]] = read_metrics(path)
        self.kept = [row for row in rows if row["step"] <= first_step]
        self.dropped = [row for row in rows if row["step"] > first_step]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.kept))
        temporary.replace(path)
        self._file = path.open("a", buffering=1)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")

    def close(self) -> None:
        self._file.close()
