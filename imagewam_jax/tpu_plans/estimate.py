"""One estimated time of a step: what its chips compute and what they wait for.

    compute = operations as the compiler estimates them + waiting for copies between memories
    step    = compute + waiting for other chips, as far as the schedule does not hide them

The range says what the assumptions are worth. At best all communication is hidden that is not
longer than computing; at worst none is, and it goes over the links along one side of the slice.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from imagewam_jax.tpu_plans.collectives import Volume
from imagewam_jax.tpu_plans.cost import (
    DEAREST,
    Operation,
    operation_seconds,
    operations,
    seconds_by_kind,
)
from imagewam_jax.tpu_plans.floor import Stage
from imagewam_jax.tpu_plans.hlo import Module, Runs
from imagewam_jax.tpu_plans.kinds import PRODUCTS
from imagewam_jax.tpu_plans.schedule import MEMORY, Speeds, waiting_seconds
from imagewam_jax.tpu_plans.sources import Stacks
from imagewam_jax.training.chips import Chip

# Sides of a slice whose ends are linked to each other: on two-dimensional slices those of a whole
# pod, on three-dimensional ones all, if they are made of whole cubes of 4 x 4 x 4.
_WHOLE_SIDE, _CUBE = 16, 4


class Links(NamedTuple):
    """Bytes per second that a chip receives: over all its links, and along one side alone."""

    all: float
    one_side: float


def slice_links(chip: Chip, sides: Sequence[int]) -> Links:
    """The links of the chips of a slice, `sides` chips long.

    Along a side a chip has two neighbours. Without a link between the ends of the side, the chips
    there have one, and the others wait for them.
    """
    link = chip.interconnect / (2 * len(sides))
    is_cubes = len(sides) == 3 and all(side % _CUBE == 0 for side in sides)
    counts = [
        2 if is_cubes or (len(sides) == 2 and side >= _WHOLE_SIDE) else 1
        for side in sides
        if side > 1
    ]
    return Links(link * max(1, sum(counts)), link * max(1, *counts, 1))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What the compiler estimates of one call, in seconds on each chip.

    kinds: of its operations by `kinds.KINDS`. memory_wait: for copies between the chip's memories.
    exposed: waiting for other chips, by the kind of collective. dearest: operations, the dearest
    first.
    """

    kinds: dict[str, float]
    memory_wait: float
    exposed: dict[str, float]
    dearest: tuple[Operation, ...]


def program_cost(module: Module, runs: Runs, stacks: Stacks, chip: Chip, links: Links) -> Cost:
    """The cost of a compiled program. PlanError: the chip's clock is not known."""
    found = operations(module, runs, stacks, chip)
    speeds = Speeds(operation_seconds(chip), links.all, chip.hbm_bandwidth)
    waits = waiting_seconds(module, runs, speeds)
    memory_wait = waits.pop(MEMORY, 0.0)
    return Cost(seconds_by_kind(found), memory_wait, waits, tuple(found[:DEAREST]))


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated time of a step and what it consists of.

    compute_seconds: operations and waiting for memory. communication_seconds: all that a chip
    receives, at the speed of its links, of which it waits for `exposed_communication_seconds`.
    mfu: model FLOPs utilisation, of the useful FLOPs. products_share: of products of matrices,
    attention's not among them, in `compute_seconds`. floor_seconds: see `floor`. low_seconds,
    high_seconds: the range, see above.
    """

    seconds: float
    compute_seconds: float
    exposed_communication_seconds: float
    mfu: float
    products_share: float
    floor_seconds: float
    low_seconds: float
    high_seconds: float
    communication_seconds: float


def step_estimate(
    cost: Cost,
    collectives: Mapping[str, Volume],
    stages: Sequence[Stage],
    useful: float,
    chip: Chip,
    sides: Sequence[int],
    chips: int,
) -> Estimate:
    """Join what a program costs on each chip. `useful`: FLOPs of all chips together."""
    links = slice_links(chip, sides)
    computing = sum(cost.kinds.values()) + cost.memory_wait
    exposed = sum(cost.exposed.values())
    wire = sum(volume.wire for volume in collectives.values())
    seconds = computing + exposed
    return Estimate(
        seconds=seconds,
        compute_seconds=computing,
        exposed_communication_seconds=exposed,
        mfu=useful / (chips * chip.flops * seconds),
        products_share=cost.kinds.get(PRODUCTS, 0.0) / computing,
        floor_seconds=sum(stage.seconds(chip, links.all) for stage in stages),
        low_seconds=max(computing, wire / links.all),
        high_seconds=computing + wire / links.one_side,
        communication_seconds=wire / links.all,
    )
