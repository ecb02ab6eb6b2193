"""Knows TPU slices: the hosts, chips and names of each generation and topology.

A slice is written "v5p:4x4x4", as for `imagewam aot --topology`. The facts are from the tables of
Google's documentation (GKE, "Plan TPUs"; Cloud TPU, "TPU versions").
"""

import math
import re
from typing import NamedTuple

CHIPS_PER_HOST = 4  # except in the smallest slices, and in those that are one host of 8


class Generation(NamedTuple):
    """A generation of TPUs.

    accelerator: the value of the label cloud.google.com/gke-tpu-accelerator of its nodes. axes: the
    number of a topology's axes. largest: how many chips one slice can have.
    """

    accelerator: str
    axes: int
    largest: int


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", 3, 4096),
    "v5e": Generation("tpu-v5-lite-podslice", 2, 256),
    "v5p": Generation("tpu-v5p-slice", 3, 8960),
    "v6e": Generation("tpu-v6e-slice", 2, 256),
}
# The topologies below a cube of 4 x 4 x 4; beyond it, every side is a multiple of 4.
SMALL_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
ALL_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")


class Slice(NamedTuple):
    generation: str
    topology: str
    chips_per_host: int
    hosts: int

    @property
    def accelerator(self) -> str:
        return GENERATIONS[self.generation].accelerator


class SliceError(ValueError):
    """There is no such slice."""


def parse_slice(text: str, chips_per_host: int | None = None) -> Slice:
    """Parse a slice such as "v6e:4x4". SliceError: there is no such slice.

    chips_per_host: 8 for a 2x4 that is one machine (ct5lp-hightpu-8t, ct6e-standard-8t); a 2x4 can
        also be two machines of 4.
    """
    generation, _, topology = text.partition(":")
    if generation not in GENERATIONS or not re.fullmatch(r"\d+(x\d+)+", topology):
        raise SliceError(f"{text!r} is no slice: {', '.join(GENERATIONS)}, as in v5p:4x4x4")
    sides = [int(side) for side in topology.split("x")]
    chips = math.prod(sides)
    _, axes, largest = GENERATIONS[generation]
    if len(sides) != axes:
        raise SliceError(f"{text}: topologies of {generation} have {axes} sides, not {len(sides)}")
    if axes == 2 and topology not in ALL_2D:
        raise SliceError(f"{text}: {generation} has {', '.join(ALL_2D)}")
    cubes = all(side and side % 4 == 0 for side in sides)
    if axes == 3 and topology not in SMALL_3D and not cubes:
        raise SliceError(f"{text}: {generation} has {', '.join(SMALL_3D)} and multiples of 4")
    if chips > largest:
        raise SliceError(f"{text}: {chips} chips, the largest slice of {generation} has {largest}")
    usual = min(chips, CHIPS_PER_HOST)
    if chips_per_host not in (None, usual) and (axes, topology, chips_per_host) != (2, "2x4", 8):
        raise SliceError(f"{text}: hosts of {usual} chips, not of {chips_per_host}")
    chips_per_host = chips_per_host or usual
    return Slice(generation, topology, chips_per_host, chips // chips_per_host)
