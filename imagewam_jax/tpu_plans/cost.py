"""What the operations of a program cost a chip, as the TPU compiler says it.

It writes `estimated_cycles` into almost every fusion, copy, convolution and pad that a chip's core
computes. The sum over these instructions, each as often as its computation runs, over the chip's
clock is the time that a chip computes. It is a model and not a measurement. What has no cycles is
not left out: kernels and some moves take what `assumed` says, and are marked.

Counted apart (`schedule`) are collectives and asynchronous copies between a chip's memories, such
as `copy-start` and `slice-start`, which have no cycles. A collective that is split over fusions
leaves them the cycles of what they compute beside it, as if it were not there; its start and its
end have none. So nothing counts twice. Every branch of a conditional counts.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from imagewam_jax.errors import PlanError
from imagewam_jax.tpu_plans.assumed import (
    KERNEL_SHARE,
    Kernel,
    is_kernel,
    kernel_bytes,
    kernel_name,
    moved_bytes,
)
from imagewam_jax.tpu_plans.collectives import sendings
from imagewam_jax.tpu_plans.hlo import Computation, Instruction, Module, Runs, computed_instructions
from imagewam_jax.tpu_plans.kinds import kind_of, main_part
from imagewam_jax.tpu_plans.sources import Stacks, op_name, shown, stack_of
from imagewam_jax.training.chips import Chip

DEAREST = 20  # how many operations a plan names
_STEPS_BACK = 4  # from a copy to what it copies


class Time(NamedTuple):
    """The seconds of one run of an instruction; is_assumed: the compiler gives no estimate."""

    seconds: float
    is_assumed: bool


# By the names of a computation and of an instruction in it; what takes no time is left out.
Times = Mapping[tuple[str, str], Time]


@dataclass(frozen=True)
class Operation:
    """Equal instructions of a program, in one call on each chip.

    kind: one of `kinds.KINDS`. name: the last parts of what JAX calls it. result: dtype and shape.
    source: the line that it comes from, in this package. is_assumed: the compiler gives no cycles.
    runs: of all of them. seconds: of all runs.
    """

    kind: str
    name: str
    result: str
    source: str
    is_assumed: bool
    runs: int
    seconds: float


def cycles(instruction: Instruction) -> int:
    """The compiler's estimate for one run of an instruction; 0 where it gives none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(found.group(1)) if found else 0


def operation_times(module: Module, chip: Chip, kernels: Mapping[str, Kernel]) -> Times:
    """The time of every instruction that takes some.

    A kernel's time is divided among its instructions by the bytes that they move. PlanError: the
    chip's clock is not known.
    """
    if chip.clock is None:
        raise PlanError(
            f"the compiler estimates in cycles, and the clock of {chip.name} is not known: add it "
            "in training/chips.py"
        )
    sends = {
        (name, sent.instruction) for name in module.computations for sent in sendings(module, name)
    }
    times: dict[tuple[str, str], Time] = {}
    for computation, instruction in computed_instructions(module):
        key = computation.name, instruction.name
        if count := cycles(instruction):
            times[key] = Time(count / chip.clock, False)
        elif is_kernel(instruction):
            kernel = kernels[kernel_name(instruction)]
            share = kernel_bytes(computation, instruction) / max(1, kernel.moved)
            times[key] = Time(share * kernel.seconds(chip, KERNEL_SHARE), True)
        elif key not in sends and (moved := moved_bytes(computation, instruction)):
            times[key] = Time(moved / chip.hbm_bandwidth, True)
    return times


def operations(module: Module, runs: Runs, stacks: Stacks, times: Times) -> list[Operation]:
    """All operations that take time, the dearest first.

    Instructions of one kind, name, result and source are one operation.
    """
    found: dict[tuple[str, str, str, str, bool], tuple[int, float]] = {}
    for computation, instruction in computed_instructions(module):
        count = runs.counts[computation.name]
        time = times.get((computation.name, instruction.name))
        if time is not None and count:
            key = (*_described(module, computation, instruction, stacks), time.is_assumed)
            before = found.get(key, (0, 0.0))
            found[key] = before[0] + count, before[1] + count * time.seconds
    rows = [Operation(*key, *sums) for key, sums in found.items()]
    return sorted(rows, key=lambda row: -row.seconds)


def seconds_by_kind(found: Iterable[Operation]) -> dict[str, float]:
    """The sums of operations' times, the longest first."""
    sums: dict[str, float] = {}
    for operation in found:
        sums[operation.kind] = sums.get(operation.kind, 0.0) + operation.seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _described(
    module: Module, computation: Computation, instruction: Instruction, stacks: Stacks
) -> tuple[str, str, str, str]:
    arrays = sorted(instruction.types, key=lambda array: -array.bytes)
    result = f"{arrays[0].dtype}[{','.join(map(str, arrays[0].shape))}]" if arrays else ""
    named = main_part(module, instruction)
    # The compiler's own copies have no source; what they copy has.
    origin, names = named, computation.instructions
    for _ in range(_STEPS_BACK):
        if stack_of(origin, stacks) or not origin.operands or origin.operands[0] not in names:
            break
        origin = main_part(module, names[origin.operands[0]])
    return (
        kind_of(module, instruction, stacks),
        _short(op_name(named)) or instruction.opcode,
        result,
        shown(stack_of(origin, stacks)),
    )


def _short(name: str) -> str:
    """The last two parts of an operation's name, and whether it is of the backward pass."""
    parts = [part for part in name.split("/") if part not in ("closed_call", "body", "while")]
    backward = "backward " if "transpose(" in name else ""
    again = "recomputed " if "rematted_computation" in name else ""
    last = re.sub(r"(?:transpose|jvp|jit|vmap)\(|\)", "", "/".join(parts[-2:])).strip("/")
    return f"{again or backward}{last}"
