"""Per-episode transforms of RLDS features into actions and states, and filters of steps."""

import dataclasses
from types import MappingProxyType
from typing import Any

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.transforms.base import (
    EpisodeFeatures,
    StepFilter,
    Transform,
    describe_version,
    find,
    step_filter,
    transform,
)
from imagewam_jax.data.transforms.columns import as_stored, columns, kuka, reached
from imagewam_jax.data.transforms.filters import bimanual_non_idle, non_idle, not_first, success
from imagewam_jax.errors import DataError

TRANSFORMS = MappingProxyType(
    {"as_stored": as_stored, "columns": columns, "kuka": kuka, "reached": reached}
)
FILTERS = MappingProxyType(
    {
        "bimanual_non_idle": bimanual_non_idle,
        "non_idle": non_idle,
        "not_first": not_first,
        "success": success,
    }
)


def find_transform(name: str) -> Transform:
    """The transform of that name: one of `TRANSFORMS`, or a user's "package.module:function"."""
    return find(name, TRANSFORMS, Transform)


def find_filter(name: str) -> StepFilter:
    """The filter of that name: one of `FILTERS`, or a user's "package.module:function"."""
    return find(name, FILTERS, StepFilter)


def check_spec(spec: DatasetSpec) -> None:
    """Checks that the transform and the filters of a dataset spec exist and read its options.

    DataError: one of them cannot be found, or none of them reads an option of the spec.
    """
    filters = spec.filters + spec.drop_filters
    readers = [find_transform(spec.transform), *map(find_filter, filters)]
    known = {name for reader in readers for name in reader.options}
    unknown = sorted({name for name, _ in spec.options} - known)
    if unknown:
        raise DataError(
            f"{spec.name}: options {unknown} are read by neither the transform "
            f"{spec.transform!r} nor the filters {list(filters)}; known: {sorted(known)}"
        )


def spec_identity(spec: DatasetSpec) -> dict[str, Any]:
    """The fields of a spec that decide what its standardized episodes hold, as JSON.

    The name of the dataset and its cameras are left out, as they change nothing of it. Digests of
    caches and of running trainings are made of this: its keys stay as they are.
    """
    return {
        "action": _jsonable(dataclasses.asdict(spec.action)),
        "state": _jsonable(dataclasses.asdict(spec.state)),
        "control_hz": float(spec.control_hz),
        "language": list(spec.language),
        "transform": describe_version(spec.transform, find_transform(spec.transform)),
        "action_keys": list(spec.action_keys),
        "state_keys": list(spec.state_keys),
        "filters": [describe_version(name, find_filter(name)) for name in spec.filters],
        # The former name of `drop_filters`.
        "cuts": [describe_version(name, find_filter(name)) for name in spec.drop_filters],
        "options": _jsonable(dict(sorted(spec.options))),
    }


def _jsonable(value: Any) -> Any:
    """The value with lists for tuples, so that it equals what JSON reads back."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_jsonable(item) for item in value]
    return value


__all__ = [
    "FILTERS",
    "TRANSFORMS",
    "EpisodeFeatures",
    "StepFilter",
    "Transform",
    "check_spec",
    "describe_version",
    "find_filter",
    "find_transform",
    "spec_identity",
    "step_filter",
    "transform",
]
