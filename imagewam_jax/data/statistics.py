"""Exact statistics of actions and states, from the index alone: no image is decoded."""

import json
from pathlib import Path

import numpy as np
from jaxtyping import Num

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.index import DatasetIndex, SplitIndex
from imagewam_jax.data.registry import DatasetSpec

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


def split_statistics(index: DatasetIndex, split: str, spec: DatasetSpec) -> dict:
    """{"source": what was measured, "action": ..., "state": ...}; use the training split only.

    Raises DataError, naming the episode and step, when a number is not finite.
    """
    chosen = index.split(split)
    return {
        "source": {
            "dataset": f"{index.name}/{index.version}",
            "index": index.checksum,
            "split": split,
            "frames": chosen.num_frames,
            "episodes": chosen.num_episodes,
        },
        "action": exact_statistics(_finite(chosen, spec.action_key)),
        "state": exact_statistics(_finite(chosen, spec.state_key)),
    }


def _finite(split: SplitIndex, key: str) -> np.ndarray:
    values = split.features[key]
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        first = split.describe_frame(int(bad[0]))
        raise DataError(f"{key!r} is not finite at {len(bad)} steps, first in {first}")
    return values


def write_statistics(path: Path, statistics: dict) -> None:
    """Writes nested statistics as JSON; arrays become lists, float64 round-trips exactly."""
    Path(path).write_text(json.dumps(statistics_to_json(statistics), indent=2))


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
