"""What the TPU compiler says that the operations of a program cost.

It writes `estimated_cycles` into every fusion, copy, convolution and pad that a chip's core
computes. The sum over these instructions, each as often as its computation runs, over the chip's
clock is the time that a chip computes. It is a model and not a measurement.

Without cycles, and counted apart (`schedule`), are collectives and asynchronous copies between a
chip's memories, `copy-start` and `slice-start`. A collective that is split over fusions leaves them
the cycles of what they compute beside it, as if it were not there; its start and its end have none.
So nothing counts twice. Every branch of a conditional counts.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from imagewam_jax.errors import PlanError
from imagewam_jax.tpu_plans.hlo import Instruction, Module, Runs, fused_computations
from imagewam_jax.tpu_plans.kinds import kind_of, main_part
from imagewam_jax.tpu_plans.sources import Stacks, op_name, shown, stack_of
from imagewam_jax.training.chips import Chip

DEAREST = 20  # how many operations a plan names
_STEPS_BACK = 4  # from a copy to what it copies


class Operation(NamedTuple):
    """Equal instructions of a program, in one call on each chip.

    kind: one of `kinds.KINDS`. name: the last parts of what JAX calls it. result: dtype and shape.
    source: the line that it comes from, in this package. runs: of all of them. seconds: of all
    runs.
    """

    kind: str
    name: str
    result: str
    source: str
    runs: int
    seconds: float


def operation_seconds(chip: Chip) -> Callable[[Instruction], float]:
    """A function from an instruction to the seconds of one run of it, as the compiler estimates.

    PlanError: the chip's clock is not known.
    """
    if chip.clock is None:
        raise PlanError(
            f"the compiler estimates in cycles, and the clock of {chip.name} is not known: add it "
            "in training/chips.py"
        )
    clock = chip.clock
    return lambda instruction: cycles(instruction) / clock


def cycles(instruction: Instruction) -> int:
    """The compiler's estimate for one run of an instruction; 0 where it gives none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', instruction.attributes)
    return int(found.group(1)) if found else 0


def operations(module: Module, runs: Runs, stacks: Stacks, chip: Chip) -> list[Operation]:
    """All operations that the compiler estimates, the dearest first.

    Instructions of one kind, name, result and source are one operation. PlanError: the chip's clock
    is not known.
    """
    seconds, fused = operation_seconds(chip), fused_computations(module)
    found: dict[tuple[str, str, str, str], tuple[int, float]] = {}
    for computation, count in runs.counts.items():
        if computation in fused:
            continue
        for instruction in module.computations[computation].instructions.values():
            if time := seconds(instruction):
                key = _described(module, computation, instruction, stacks)
                before = found.get(key, (0, 0.0))
                found[key] = before[0] + count, before[1] + count * time
    rows = [Operation(*key, *sums) for key, sums in found.items()]
    return sorted(rows, key=lambda row: -row.seconds)


def seconds_by_kind(found: Iterable[Operation]) -> dict[str, float]:
    """The sums of operations' times, the longest first."""
    sums: dict[str, float] = {}
    for operation in found:
        sums[operation.kind] = sums.get(operation.kind, 0.0) + operation.seconds
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def _described(
    module: Module, computation: str, instruction: Instruction, stacks: Stacks
) -> tuple[str, str, str, str]:
    arrays = sorted(instruction.types, key=lambda array: -array.bytes)
    result = f"{arrays[0].dtype}[{','.join(map(str, arrays[0].shape))}]" if arrays else ""
    named = main_part(module, instruction)
    # The compiler's own copies have no source; what they copy has.
    origin, names = named, module.computations[computation].instructions
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
