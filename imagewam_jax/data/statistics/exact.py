"""Exact statistics of actions and states, computed once per dataset; no image is decoded."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Num

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.datasets import Data, Dataset
from imagewam_jax.data.loading.splits import selected_ranges, selected_steps
from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.statistics import (
    STATISTICS,
    FieldStatistics,
    read_statistics,
    write_statistics,
)


def statistics_by_dataset(data: Data, split: str, *, pooled: bool) -> dict[str, dict]:
    """The statistics of each dataset by its name; if pooled, those of all datasets together."""
    if pooled:
        shared = dataset_statistics(data.datasets, split)
        return {d.name: shared for d in data.datasets}
    return {d.name: dataset_statistics([d], split) for d in data.datasets}


def dataset_statistics(datasets: Sequence[Dataset], split: str) -> dict:
    """{"source": what was measured, "action": ..., "state": ...} of the standardized episodes.

    Use only training episodes. Every step counts once, also steps that `filters` leave out, but not
    those that `drop_filters` drop, nor those with numbers that are not finite. The result is kept
    beside the first dataset's index, under a digest of "source": the indexed bytes, the specs with
    their transforms, the episodes. DataError: there are no steps, or the datasets' actions or
    states have different encodings.
    """
    check_same_encodings([dataset.spec for dataset in datasets])
    sources = {dataset.name: _source(dataset, split) for dataset in datasets}
    totals = {
        name: sum(source[name] for source in sources.values()) for name in ("episodes", "frames")
    }
    source = {"parts": sources, **totals}
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode()).hexdigest()[:16]
    path = datasets[0].index_folder / "statistics" / f"{datasets[0].name}-{digest}.json"
    if path.exists():
        return read_statistics(path)
    steps = [_steps(dataset, split) for dataset in datasets]
    found = {
        "source": source,
        "action": exact_statistics(np.concatenate([actions for actions, _ in steps])),
        "state": exact_statistics(np.concatenate([states for _, states in steps])),
    }
    write_statistics(path, found)
    return found


def check_same_encodings(specs: Sequence[DatasetSpec]) -> None:
    """DataError: the numbers of these datasets mean different things."""
    for field in ("action", "state"):
        encodings = {spec.name: getattr(spec, field) for spec in specs}
        if len(set(encodings.values())) > 1:
            kinds = {name: encoding.name for name, encoding in encodings.items()}
            raise DataError(
                f"{field}s of different encodings have no statistics in common: {kinds}"
            )


def _source(dataset: Dataset, split: str) -> dict[str, Any]:
    """What decides the statistics of one dataset; the keys are in the files of older runs too."""
    selected = dataset.select(split)
    ranges, rows = selected_ranges(selected), selected_steps(selected)
    if not len(rows):
        raise DataError(
            f"{dataset.name}: the {len(selected.episodes)} episodes of {split!r} have no steps"
        )
    steps = int(selected.standardized.episode_steps[selected.episodes].sum())
    return {
        "dataset": f"{dataset.index.name}/{dataset.index.version}",
        "index": dataset.index.checksum,
        "standard": dataset.standardized.digest,
        "split": selected.split.name,
        "first_episode": ranges[0][0],
        "episodes": len(selected.episodes),
        "frames": len(rows),
        **({"ranges": [list(r) for r in ranges]} if len(ranges) > 1 else {}),
        **({"not_finite": steps - len(rows)} if steps > len(rows) else {}),
    }


def _steps(
    dataset: Dataset, split: str
) -> tuple[Float32[np.ndarray, "n a"], Float32[np.ndarray, "n p"]]:
    """Actions and states of all steps of the split's episodes."""
    selected = dataset.select(split)
    rows = selected_steps(selected)
    return selected.standardized.actions[rows], selected.standardized.states[rows]


def exact_statistics(values: Num[np.ndarray, "n d"]) -> FieldStatistics:
    """Statistics over all rows with equal weight, in float64.

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
