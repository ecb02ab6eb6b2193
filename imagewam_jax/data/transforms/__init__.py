"""Per-episode transforms of RLDS features into actions and states, and filters of steps."""

from types import MappingProxyType

from imagewam_jax.data.transforms.base import (
    StepFilter,
    Transform,
    describe_version,
    find,
    step_filter,
    transform,
)
from imagewam_jax.data.transforms.columns import columns
from imagewam_jax.data.transforms.features import EpisodeFeatures
from imagewam_jax.data.transforms.filters import non_idle, not_first, success
from imagewam_jax.data.transforms.idle import bimanual_non_idle
from imagewam_jax.data.transforms.kuka import kuka
from imagewam_jax.data.transforms.reached import reached
from imagewam_jax.data.transforms.stored import as_stored

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
    """The transform of that name, ours or a user's "package.module:function"."""
    return find(name, TRANSFORMS, Transform)


def find_filter(name: str) -> StepFilter:
    """The filter of that name, ours or a user's "package.module:function"."""
    return find(name, FILTERS, StepFilter)


__all__ = [
    "FILTERS",
    "TRANSFORMS",
    "EpisodeFeatures",
    "StepFilter",
    "Transform",
    "describe_version",
    "find_filter",
    "find_transform",
    "step_filter",
    "transform",
]
