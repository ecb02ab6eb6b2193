"""Named mixtures of datasets, and the shares of samples that follow from their weights.

Sources of the weights: Octo's `oxe_dataset_mixes.py` and OpenVLA's `rlds/oxe/mixtures.py`, which
multiply them by the number of transitions of each dataset. Octo's transforms blank the instructions
of some datasets, OpenVLA's keep them.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from imagewam_jax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Entry:
    """One dataset of a mixture.

    blank_language: its instructions are replaced by empty ones.
    version, config: its version and its builder config; by default those that TFDS would take.
    """

    dataset: str
    weight: float
    blank_language: bool = False
    version: str = ""
    config: str = ""

    def __post_init__(self):
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise DataError(
                f"mixture: {self.dataset!r} has the weight {self.weight}, expected a number above 0"
            )


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Datasets that are sampled together; each occurs once."""

    entries: tuple[Entry, ...]

    def __post_init__(self):
        names = [entry.dataset for entry in self.entries]
        if not names:
            raise DataError("mixture: it has no datasets")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"mixture: {twice} occur more than once; give each one weight")


def shares(
    mixture: Mixture, transitions: Mapping[str, int], scale_by_transitions: bool
) -> dict[str, float]:
    """The share of each dataset in all samples, by name in the mixture's order; they add up to 1.

    Shares are proportional to weight x transitions, or to the weight alone. transitions: the steps
    of each dataset, needed only if they scale. DataError: they are missing or not above 0.
    """
    amounts = {}
    for entry in mixture.entries:
        steps = transitions.get(entry.dataset) if scale_by_transitions else 1
        if steps is None or not steps > 0:
            raise DataError(
                f"mixture: {entry.dataset!r} has {steps} transitions, expected a number above 0"
            )
        amounts[entry.dataset] = entry.weight * steps
    total = math.fsum(amounts.values())
    return {name: amount / total for name, amount in amounts.items()}


def mixture_from_config(section: Iterable[Mapping[str, Any]]) -> Mixture:
    """A user's mixture: [{"dataset": ..., "weight": ..., "blank_language": ...}, ...].

    Of the fields of `Entry` only dataset and weight must be there. DataError names the entry and
    what is wrong with it.
    """
    if isinstance(section, str | Mapping):
        raise DataError(f"mixture is {section!r}, expected a list of entries")
    return Mixture(tuple(_entry(item, n) for n, item in enumerate(section)))


def _entry(item: Any, number: int) -> Entry:
    where = f"mixture: entry {number}"
    if not isinstance(item, Mapping):
        raise DataError(f"{where} is {item!r}, expected a dataset and its weight")
    unknown = sorted(set(item) - {field.name for field in dataclasses.fields(Entry)})
    missing = [field for field in ("dataset", "weight") if field not in item]
    if unknown or missing:
        raise DataError(f"{where} {dict(item)}: unknown fields {unknown}, missing {missing}")
    name, weight, blank = item["dataset"], item["weight"], item.get("blank_language", False)
    if not isinstance(name, str):
        raise DataError(f"{where}: there is no dataset {name!r}")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise DataError(f"{where}: the weight of {name!r} is {weight!r}, expected a number above 0")
    if not isinstance(blank, bool):
        raise DataError(f"{where}: blank_language is {blank!r}, expected true or false")
    names = {field: item.get(field, "") for field in ("version", "config")}
    for field, value in names.items():
        if not isinstance(value, str):
            raise DataError(f"{where}: the {field} of {name!r} is {value!r}, expected a name")
    return Entry(name, float(weight), blank, **names)


FRACTAL, KUKA = 0.54087122203, 0.8341046294  # as published
_CONVERTED = "_converted_externally_to_rlds"

# Dataset, weight in Octo's soup, weight in OpenVLA's (None: not in it), blank language in Octo's.
_SOUPS = (
    ("fractal20220817_data", FRACTAL, FRACTAL, False),
    ("kuka", KUKA, KUKA, True),
    ("bridge_dataset", 1.0, 1.0, False),
    ("taco_play", 2.0, 2.0, False),
    ("jaco_play", 1.0, 1.0, False),
    ("berkeley_cable_routing", 1.0, 1.0, True),
    ("roboturk", 2.0, 2.0, True),
    ("nyu_door_opening_surprising_effectiveness", 1.0, None, True),  # has only a wrist camera
    ("viola", 2.0, 2.0, True),
    ("berkeley_autolab_ur5", 2.0, 2.0, False),
    ("toto", 1.0, 1.0, True),
    ("language_table", 0.1, 0.1, False),
    ("stanford_hydra_dataset" + _CONVERTED, 2.0, 2.0, True),
    ("austin_buds_dataset" + _CONVERTED, 1.0, 1.0, True),
    ("nyu_franka_play_dataset" + _CONVERTED, 3.0, 3.0, True),
    ("furniture_bench_dataset" + _CONVERTED, 0.1, 0.1, False),
    ("ucsd_kitchen_dataset" + _CONVERTED, 2.0, 2.0, False),
    ("austin_sailor_dataset" + _CONVERTED, 1.0, 1.0, True),
    ("austin_sirius_dataset" + _CONVERTED, 1.0, 1.0, True),
    ("bc_z", 0.2, 0.2, False),
    ("dlr_edan_shared_control" + _CONVERTED, 1.0, 1.0, False),
    ("iamlab_cmu_pickup_insert" + _CONVERTED, 1.0, 1.0, False),
    ("utaustin_mutex", 1.0, 1.0, True),
    ("berkeley_fanuc_manipulation", 2.0, 2.0, False),
    ("cmu_stretch", 1.0, 1.0, False),
    ("fmb_dataset", None, 1.0, False),
    ("dobbe", None, 0.2, False),
    ("droid", None, 0.06, False),
)

_RTX = (
    Entry("fractal20220817_data", FRACTAL),
    Entry("kuka", KUKA, blank_language=True),
    Entry("bridge_dataset", 1.0),
    Entry("taco_play", 2.0),
    Entry("jaco_play", 2.0),
    Entry("berkeley_cable_routing", 3.0, blank_language=True),
    Entry("roboturk", 1.0, blank_language=True),
    Entry("nyu_door_opening_surprising_effectiveness", 5.0, blank_language=True),
    Entry("viola", 2.0, blank_language=True),
    Entry("berkeley_autolab_ur5", 1.0),
    Entry("toto", 1.0, blank_language=True),
)

_LIBERO = tuple(
    Entry(f"{suite}_no_noops", 1.0)
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
)

MIXTURES: Mapping[str, Mixture] = MappingProxyType(
    {
        "oxe_magic_soup": Mixture(
            tuple(Entry(name, weight, blank) for name, weight, _, blank in _SOUPS if weight)
        ),
        "oxe_magic_soup_plus": Mixture(
            tuple(Entry(name, weight) for name, _, weight, _ in _SOUPS if weight)
        ),
        "rtx": Mixture(_RTX),  # Octo's
        "bridge_rt_1": Mixture((Entry("bridge_dataset", 1.0), Entry("fractal20220817_data", 1.0))),
        "libero": Mixture(_LIBERO),
    }
)
