"""The registry: a dataset spec for each known dataset, as plain data.

A new public dataset is one more spec, and a transform where the general ones do not fit. A user's
own dataset is a spec in their config (`data.rows`, see `config.py`) and needs no edit here.
"""

from collections.abc import Mapping
from types import MappingProxyType

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.registry import openx, other
from imagewam_jax.errors import DataError

REGISTRY: Mapping[str, DatasetSpec] = MappingProxyType(
    {spec.name: spec for spec in (*other.SPECS, *openx.SPECS)}
)


def dataset_spec(name: str) -> DatasetSpec:
    """The registered dataset spec of that name. DataError names the known ones if there is none."""
    if name not in REGISTRY:
        raise DataError(f"no dataset {name!r} in the registry, which has {sorted(REGISTRY)}")
    return REGISTRY[name]
