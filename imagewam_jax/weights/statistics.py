"""Normalisation statistics of an official checkpoint (docs/spec/imagewam_flux2.md, 7.6)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from imagewam_jax.errors import ConversionError, DataError
from imagewam_jax.preprocess.normalization import Normalizer, make_normalizer
from imagewam_jax.preprocess.statistics import (
    STATISTICS,
    FieldStatistics,
    select_statistics,
    statistics_from_json,
)

FIELDS = ("action", "state")


def global_statistics(
    official: Mapping[str, Any], embodiment: str | None, dims: Mapping[str, int | None]
) -> dict[str, FieldStatistics]:
    """{"action": ..., "state": ...} of a `dataset_stats.json`; its keys follow each other.

    `embodiment` is one of those of a per-embodiment file; `dims` are the widths that the policy
    has, None for no state. ConversionError: the file does not have what it should.
    """
    if official.get("type") == "per_embodiment":
        choices = official.get("embodiments")
        choices = choices if isinstance(choices, Mapping) else {}
        if embodiment not in choices:
            raise ConversionError(
                f"dataset_stats.json has the embodiments {sorted(choices)}: give one as "
                "--set embodiment=..."
            )
        official = choices[embodiment]
    found = {}
    for field in FIELDS:
        if not isinstance(official.get(field), Mapping):
            raise ConversionError(f"dataset_stats.json has no {field!r}; it has {sorted(official)}")
        try:
            found[field] = _joined(official[field])
        except (AttributeError, DataError, TypeError, ValueError) as error:
            raise ConversionError(f"dataset_stats.json: {field}: {error}") from error
        width = len(found[field]["min"])
        if dims[field] not in (None, width):
            raise ConversionError(
                f"dataset_stats.json has {width} {field} dimensions, the weights have {dims[field]}"
            )
    return found


def _joined(keys: Mapping[str, Any]) -> FieldStatistics:
    """The statistics of all keys of a field, in their order."""
    entries = [
        select_statistics(entry, stepwise=False) for entry in statistics_from_json(keys).values()
    ]
    joined = {n: np.concatenate([np.atleast_1d(e[n]) for e in entries]) for n in STATISTICS}
    for name, values in joined.items():
        if len(values) != len(joined["min"]) or not np.isfinite(values.astype(np.float64)).all():
            raise ValueError(f"global_{name} is {values.tolist()}, expected one number for each")
    return joined


def normalizers(statistics: Mapping[str, FieldStatistics], mode: str) -> dict[str, Normalizer]:
    """Those of actions and state. DataError: there is no such mode."""
    return {
        "actions": make_normalizer(statistics["action"], mode),
        "state": make_normalizer(statistics["state"], mode),
    }
