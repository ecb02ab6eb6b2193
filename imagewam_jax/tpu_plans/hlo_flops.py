"""FLOPs of a compiled program's matrix products and convolutions, on one chip, loops included."""

import re

from imagewam_jax.tpu_plans.contractions import Window, convolution_flops, product_flops
from imagewam_jax.tpu_plans.hlo import Computation, Instruction, Module, Runs


def module_flops(module: Module, runs: Runs) -> int:
    """Of one call on each chip. What a custom call computes (a kernel) is not seen."""
    return sum(
        count * _computation_flops(module.computations[name]) for name, count in runs.counts.items()
    )


def _computation_flops(computation: Computation) -> int:
    return sum(
        _product(computation, instruction)
        if instruction.opcode == "dot"
        else _convolution(computation, instruction)
        for instruction in computation.instructions.values()
        if instruction.opcode in ("dot", "convolution")
    )


def _shape(computation: Computation, name: str) -> tuple[int, ...]:
    return computation.instructions[name].types[0].shape


def _product(computation: Computation, dot: Instruction) -> int:
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes).group(1)
    shape = _shape(computation, dot.operands[0])
    contracted = [shape[int(axis)] for axis in axes.split(",") if axis]
    return product_flops(dot.types[0].shape, contracted)


def _convolution(computation: Computation, instruction: Instruction) -> int:
    left, right = (_shape(computation, name) for name in instruction.operands)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    inputs, kernel, output = labels.groups()
    windows = _windows(instruction)
    axes = [
        (left[inputs.index(str(axis))], windows[axis])
        for axis in range(len(inputs) - 2)  # b and f are not moved over
    ]
    groups = int(instruction.attribute("batch_group_count") or 1)
    return convolution_flops(
        left[inputs.index("b")] // groups,
        instruction.types[0].shape[output.index("f")],
        right[kernel.index("i")],
        axes,
    )


def _windows(instruction: Instruction) -> list[Window]:
    """XLA writes what differs from the usual: `size=3x3 pad=0_1x0_1`."""
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    parts = dict(part.split("=") for part in found.group(1).split()) if found else {}
    if "size" not in parts:
        return []
    sizes = parts["size"].split("x")

    def numbers(name: str, usual: str) -> list[str]:
        return parts[name].split("x") if name in parts else [usual] * len(sizes)

    return [
        Window(int(size), int(stride), *map(int, pad.split("_")), int(input_), int(kernel))
        for size, stride, pad, input_, kernel in zip(
            sizes,
            numbers("stride", "1"),
            numbers("pad", "0_0"),
            numbers("lhs_dilate", "1"),
            numbers("rhs_dilate", "1"),
            strict=True,
        )
    ]
