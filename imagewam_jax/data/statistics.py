"""Exact statistics of actions and states, in float64: no image is decoded."""

import json
import os
from pathlib import Path

import numpy as np
from jaxtyping import Num

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.partial import partial_path

# "min", "max", "mean", "std", "q01", "q99": float64 [..., dim]
FieldStatistics = dict[str, np.ndarray]
STATISTICS = ("min", "max", "mean", "std", "q01", "q99")


def exact_statistics(values: Num[np.ndarray, "n d"]) -> FieldStatistics:
    """Over all rows with equal weight, in float64.

    std divides by n, quantiles interpolate linearly. One dimension is in memory at a time, so
    `values` may be a memory-mapped column.
    """
    columns = [
        _column_statistics(values[:, dim].astype(np.float64)) for dim in range(values.shape[1])
    ]
    return {name: np.array([column[name] for column in columns]) for name in STATISTICS}


def _column_statistics(column: np.ndarray) -> dict[str, float]:
    q01, q99 = np.quantile(column, (0.01, 0.99))
    return {
        "min": column.min(),
        "max": column.max(),
        "mean": column.mean(),
        "std": column.std(),
        "q01": q01,
        "q99": q99,
    }


def write_statistics(path: Path, statistics: dict) -> None:
    """Writes nested statistics as JSON, complete or not at all; float64 round-trips exactly.
    DataError: the file is there already, with others, or cannot be written."""
    path, content = Path(path), statistics_to_json(statistics)
    if path.exists() and statistics_to_json(read_statistics(path)) != content:
        raise DataError(f"{path}: holds other statistics; they are never changed, remove the file")
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(content, indent=2))
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}: could not be written: {error}") from error


def read_statistics(path: Path) -> dict:
    return statistics_from_json(json.loads(Path(path).read_text()))


def statistics_to_json(statistics: dict) -> dict:
    """Arrays to nested lists, at any depth."""
    return {
        key: statistics_to_json(value)
        if isinstance(value, dict)
        else (value.tolist() if isinstance(value, np.ndarray) else value)
        for key, value in statistics.items()
    }


def statistics_from_json(statistics: dict) -> dict:
    """Lists to float64 arrays, at any depth."""
    return {
        key: statistics_from_json(value)
        if isinstance(value, dict)
        else (np.array(value, np.float64) if isinstance(value, list) else value)
        for key, value in statistics.items()
    }
