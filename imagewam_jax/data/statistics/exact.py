"""Exact statistics of actions and states, in float64: no image is decoded."""

import numpy as np
from jaxtyping import Num

from imagewam_jax.preprocess.statistics import STATISTICS, FieldStatistics


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
