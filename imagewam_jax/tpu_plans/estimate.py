"""One estimated time of a step: what its chips compute and what they wait for.

    compute = operations as the compiler estimates them + what it does not estimate, by assumption
              + waiting for copies between memories
    step    = compute + waiting for other chips, as far as the schedule does not hide them

The range says what the assumptions are worth. At best all communication is hidden that is not
longer than computing, and kernels reach the chip's peak; at worst no communication is hidden, it
goes over the links along one side of the slice, and kernels reach a quarter of the peak.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from imagewam_jax.tpu_plans.assumed import (
    KERNEL_SHARE,
    LEAST_SHARE,
    MOST_SHARE,
    Kernel,
    find_kernels,
)
from imagewam_jax.tpu_plans.collectives import Volume
from imagewam_jax.tpu_plans.cost import (
    DEAREST,
    Operation,
    operation_times,
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
    ] or [1]
    return Links(link * sum(counts), link * max(counts))


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one call of a compiled program costs, in seconds on each chip.

    kinds: of its operations by `kinds.KINDS`. assumed: the part of these that the compiler gives no
    cycles for, by kind; `kernels` are in it. memory_wait: for copies between the chip's memories.
    exposed: waiting for other chips, by the kind of collective. operations: the dearest, in order.
    """

    kinds: dict[str, float]
    assumed: dict[str, float]
    kernels: tuple[Kernel, ...]
    memory_wait: float
    exposed: dict[str, float]
    operations: tuple[Operation, ...]


def program_cost(
    module: Module,
    runs: Runs,
    stacks: Stacks,
    kernel_flops: Mapping[str, float],
    chip: Chip,
    links: Links,
) -> Cost:
    """The cost of a compiled program. PlanError: the chip's clock is not known.

    kernel_flops: of its Pallas kernels by name, on each chip.
    """
    kernels = find_kernels(module, runs, kernel_flops)
    times = operation_times(module, chip, kernels)
    found = operations(module, runs, stacks, times)
    waits = waiting_seconds(module, runs, Speeds(times, links.all, chip.hbm_bandwidth))
    memory_wait = waits.pop(MEMORY, 0.0)
    return Cost(
        kinds=seconds_by_kind(found),
        assumed=seconds_by_kind(operation for operation in found if operation.is_assumed),
        kernels=tuple(kernels.values()),
        memory_wait=memory_wait,
        exposed=waits,
        operations=tuple(found[:DEAREST]),
    )


@dataclasses.dataclass(frozen=True)
class Sent:
    """Collectives of one kind in a step, on each chip.

    received: bytes. seconds: at the speed of its links, of which the schedule leaves `exposed` for
    the chip to wait, and hides `hidden` behind operations.
    """

    received: float
    seconds: float
    exposed: float
    hidden: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The estimated time of a step and what it consists of.

    compute_seconds: operations and waiting for memory; `assumed_seconds` of it are not estimated by
    the compiler. mfu: model FLOPs utilisation, of the useful FLOPs. products_share: of products of
    matrices, attention's not among them, in `compute_seconds`. floor_seconds: the sum of `floor`,
    which has its stages. low_seconds, high_seconds: the range, see above. collectives: by kind.
    """

    seconds: float
    compute_seconds: float
    exposed_communication_seconds: float
    mfu: float
    products_share: float
    floor_seconds: float
    low_seconds: float
    high_seconds: float
    assumed_seconds: float
    floor: dict[str, float]
    collectives: dict[str, Sent]


def step_estimate(
    cost: Cost,
    volumes: Mapping[str, Volume],
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
    wire = sum(volume.wire for volume in volumes.values())
    kernels = {
        share: sum(kernel.seconds(chip, share) for kernel in cost.kernels)
        for share in (LEAST_SHARE, KERNEL_SHARE, MOST_SHARE)
    }
    others = computing - kernels[KERNEL_SHARE]
    floor = {stage.name: stage.seconds(chip, links.all) for stage in stages}
    seconds = computing + exposed
    return Estimate(
        seconds=seconds,
        compute_seconds=computing,
        exposed_communication_seconds=exposed,
        mfu=useful / (chips * chip.flops * seconds),
        products_share=cost.kinds.get(PRODUCTS, 0.0) / computing,
        floor_seconds=sum(floor.values()),
        low_seconds=max(others + kernels[MOST_SHARE], wire / links.all),
        high_seconds=others + kernels[LEAST_SHARE] + wire / links.one_side,
        assumed_seconds=sum(cost.assumed.values()),
        floor=floor,
        collectives={
            kind: _sent(volume.wire, links.all, cost.exposed.get(kind, 0.0))
            for kind, volume in volumes.items()
        },
    )


def _sent(received: float, links: float, exposed: float) -> Sent:
    seconds = received / links
    return Sent(received, seconds, exposed, max(0.0, seconds - exposed))
