"""What is assumed of operations that the TPU compiler estimates no cycles for.

A Pallas kernel takes as long as its products of matrices at a share of the chip's peak, or as its
operands and results take through main memory, whichever is longer. The schedules that the compiler
makes of splash's loops over 512 queries and 896 keys, one bundle of instructions a cycle, come to
shares between 0.28 (v6e, forward) and 0.89 (v5e, backward), without waiting, and less for fewer
queries; see `benchmarks/attention_cycles.py`.

Other such operations, as slices with strides, pads between elements, and changes of layout, write
their results to main memory and read as much from it.
"""

import dataclasses
import re
from collections.abc import Mapping

from imagewam_jax.tpu_plans.collectives import KINDS
from imagewam_jax.tpu_plans.hlo import Computation, Instruction, Module, Runs, computed_instructions
from imagewam_jax.tpu_plans.sources import op_name
from imagewam_jax.training.chips import Chip

# Shares of the peak that a kernel's products reach: taken for the estimate, and for its range.
KERNEL_SHARE, LEAST_SHARE, MOST_SHARE = 0.5, 0.25, 1.0

# Operations that take no time: views, constants, and calls of what is counted by itself.
_FREE = {
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
}
# Kernels that only say where arrays lie.
_PLACES = ("AllocateBuffer", "ConcatBitcast", "SliceBitcast")


@dataclasses.dataclass(frozen=True)
class Kernel:
    """All runs of a Pallas kernel in one call of the program, on each chip.

    flops: of the traced kernel's products of matrices. moved: bytes of operands and results.
    """

    name: str
    runs: int
    flops: float
    moved: int

    def seconds(self, chip: Chip, share: float) -> float:
        """All runs, if products reach this share of the chip's peak."""
        return max(self.flops / (share * chip.flops), self.moved / chip.hbm_bandwidth)


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction is a Pallas kernel."""
    return 'custom_call_target="tpu_custom_call"' in instruction.attributes


def kernel_name(instruction: Instruction) -> str:
    """What a kernel is called where it is traced."""
    *_, name, last = ("", *op_name(instruction).split("/"))
    return name if last == "pallas_call" else re.sub(r"\.\d+$", "", instruction.name)


def find_kernels(module: Module, runs: Runs, flops: Mapping[str, float]) -> dict[str, Kernel]:
    """The kernels of a program by name; `flops` are those of each in a call, on each chip."""
    found: dict[str, Kernel] = {}
    for computation, instruction in computed_instructions(module):
        count = runs.counts[computation.name]
        if count and is_kernel(instruction):
            name = kernel_name(instruction)
            before = found.get(name, Kernel(name, 0, flops.get(name, 0.0), 0))
            moved = before.moved + count * kernel_bytes(computation, instruction)
            found[name] = dataclasses.replace(before, runs=before.runs + count, moved=moved)
    return found


def kernel_bytes(computation: Computation, instruction: Instruction) -> int:
    """Bytes of a kernel's operands and results, wherever they are."""
    sources = computation.instructions
    operands = [array for o in instruction.operands if o in sources for array in sources[o].types]
    return sum(array.bytes for array in (*operands, *instruction.types))


def moved_bytes(computation: Computation, instruction: Instruction) -> int:
    """Bytes that an operation without an estimate reads from and writes to main memory.

    0: it is a view or a single number, stays within the chip's vector memory, or is a transfer,
    which `schedule` counts.
    """
    opcode = instruction.opcode
    is_transfer = opcode in KINDS or opcode.endswith(("-start", "-update", "-done"))
    if opcode in _FREE or is_transfer:
        return 0
    if any(f'custom_call_target="{name}"' in instruction.attributes for name in _PLACES):
        return 0
    changed = instruction
    if opcode == "dynamic-update-slice":  # it changes an array where it is
        changed = computation.instructions.get(instruction.operands[1], instruction)
    if any(array.space for array in instruction.types):
        return 0
    return 2 * sum(array.bytes for array in changed.types if array.shape)
