"""The families of policies that can be converted. A new one is a file and an entry here."""

from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.layouts.family import Family
from imagewam_jax.weights.layouts.flux2 import FLUX2
from imagewam_jax.weights.layouts.metadata import Specs
from imagewam_jax.weights.layouts.omnigen2 import OMNIGEN2
from imagewam_jax.weights.layouts.ovis_u1 import OVIS_U1

FAMILIES = (FLUX2, OMNIGEN2, OVIS_U1)


def family_of(backbone: Any) -> Family:
    """The family of a backbone's configuration. ConversionError: it has no official layout."""
    found = next((f for f in FAMILIES if isinstance(backbone, f.backbone)), None)
    if found is None:
        names = ", ".join(family.title for family in FAMILIES)
        raise ConversionError(
            f"policies on {type(backbone).__name__.removesuffix('Config')} have no official "
            f"layout; those on {names} have one"
        )
    return found


def recognized_family(specs: Specs, prefix: str) -> Family:
    """The family of an expert whose tensors are below a prefix. ConversionError: of none."""
    found = next((f for f in FAMILIES if prefix + f.expert[0] in specs), None)
    if found is None:
        names = " or ".join(prefix + family.expert[0] for family in FAMILIES)
        raise ConversionError(f"no {names}, of which an action expert has one")
    return found
