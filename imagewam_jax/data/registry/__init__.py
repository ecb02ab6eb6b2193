"""What is known about each dataset, as rows of data: one file per family of datasets.

A new public dataset is one row, and a transform where the general ones do not fit. A user's own
dataset is a row in their config and needs no edit here.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from imagewam_jax.data.dataset_spec import ROLES, Camera, DatasetSpec, Encoding
from imagewam_jax.data.registry import bridge, config, droid, libero, openx, other, own
from imagewam_jax.data.registry.own import METAWORLD_FAUCET
from imagewam_jax.errors import DataError

FAMILIES = (own, libero, openx, bridge, droid, other)

REGISTRY: Mapping[str, DatasetSpec] = MappingProxyType(
    {spec.name: spec for family in FAMILIES for spec in family.ROWS}
)


def dataset_spec(name: str) -> DatasetSpec:
    """The registry's row of that name; DataError with the known names if there is none."""
    if name not in REGISTRY:
        raise DataError(f"no dataset {name!r} in the registry, which has {sorted(REGISTRY)}")
    return REGISTRY[name]


def spec_from_config(section: Mapping[str, Any]) -> DatasetSpec:
    """A user's own row from a config's section; see `config.spec_from_config`."""
    return config.spec_from_config(section, REGISTRY)


__all__ = [
    "METAWORLD_FAUCET",
    "REGISTRY",
    "ROLES",
    "Camera",
    "DatasetSpec",
    "Encoding",
    "dataset_spec",
    "spec_from_config",
]
