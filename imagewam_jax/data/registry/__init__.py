"""The registry: a dataset spec for each known dataset, as plain data.

A new public dataset is one more spec, and a transform where the general ones do not fit. A user's
own dataset is a spec in their config (`data.rows`, see `config.py`) and needs no edit here.
"""

import difflib
import shlex
from collections.abc import Mapping
from types import MappingProxyType

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.registry import openx, other
from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import AnyPath

REGISTRY: Mapping[str, DatasetSpec] = MappingProxyType(
    {spec.name: spec for spec in (*other.SPECS, *openx.SPECS)}
)


def dataset_spec(name: str, folder: AnyPath | str = "") -> DatasetSpec:
    """The registered dataset spec of that name.

    folder: of the dataset. DataError: there is none; it names similar ones, and the command that
    suggests one for the dataset in this folder.
    """
    if name not in REGISTRY:
        similar = difflib.get_close_matches(name, REGISTRY, n=3)
        raise DataError(
            f"no dataset {name!r} in the registry or in data.rows"
            + (f", but {similar}" if similar else "")
            + "; to see what is in it, and a row to paste: "
            f"imagewam data describe {shlex.quote(str(folder)) if str(folder) else 'DIR'}"
        )
    return REGISTRY[name]
