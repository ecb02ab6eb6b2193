"""FLOPs of matrix products and convolutions, in jaxprs and in compiled programs, loops included.

A multiplication and an addition are 2 FLOPs. XLA's `cost_analysis` counts the body of a loop once,
however often it runs; here it is multiplied. Recomputation in the backward pass counts as well.
Counting in a jaxpr compiles nothing, and its arguments may be abstract.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from imagewam_jax.tpu_plans.hlo import Computation, Instruction, Module, Runs


class Window(NamedTuple):
    """How a convolution's kernel moves along one axis of its input.

    `size` is the kernel's length, `low` and `high` are the padding before and after the input
    (negative padding cuts it off).
    """

    size: int
    stride: int = 1
    low: int = 0
    high: int = 0
    input_dilation: int = 1
    kernel_dilation: int = 1


def product_flops(output: Sequence[int], contracted: Sequence[int]) -> int:
    """FLOPs of a matrix product, from the shape of its output and the lengths it contracts."""
    return 2 * math.prod(output) * math.prod(contracted)


def convolution_flops(
    samples: int, outputs: int, inputs_per_output: int, axes: Sequence[tuple[int, Window]]
) -> int:
    """FLOPs of a convolution over `axes`, each the length of an input axis and its window.

    samples: the size of the batch. outputs: the number of output channels. inputs_per_output: the
    number of input channels that each of them sums over. Products with padding do not count, as in
    XLA's own analysis.
    """
    pairs = math.prod(_pairs(length, window) for length, window in axes)
    return 2 * samples * outputs * inputs_per_output * pairs


def _pairs(length: int, window: Window) -> int:
    """Count the pairs of an output position and a kernel position that meet an input value."""
    dilated = (length - 1) * window.input_dilation + 1
    reach = (window.size - 1) * window.kernel_dilation + 1
    count = (window.low + dilated + window.high - reach) // window.stride + 1
    starts = window.stride * np.arange(max(count, 0))[:, None] - window.low
    positions = starts + window.kernel_dilation * np.arange(window.size)
    inside = (positions >= 0) & (positions < dilated)
    return int((inside & (positions % window.input_dilation == 0)).sum())


class UnknownTripCount(ValueError):
    """A loop runs until a condition holds, so that its number of iterations is not known."""


def function_flops(function: Callable, *arguments: Any) -> int:
    """FLOPs of one call of a function; arguments may be `jax.ShapeDtypeStruct`s."""
    return jaxpr_flops(jax.make_jaxpr(function)(*arguments))


def jaxpr_flops(closed: ClosedJaxpr) -> int:
    """FLOPs of a jaxpr.

    The most expensive branch of a `cond` counts. UnknownTripCount: there is a `while_loop` that
    does not count from one constant to another.
    """
    return _jaxpr_flops(closed.jaxpr)


def _jaxpr_flops(jaxpr: Jaxpr) -> int:
    return sum(_equation_flops(equation, jaxpr) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn, jaxpr: Jaxpr) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return product_flops(equation.outvars[0].aval.shape, [shape[axis] for axis in contracted])
    if name == "conv_general_dilated":
        return _jaxpr_convolution(equation)
    if name == "cond":
        return max(_jaxpr_flops(branch.jaxpr) for branch in params["branches"])
    inside = sum(map(_jaxpr_flops, _inner(equation)))
    return inside and inside * _repeats(equation, jaxpr)


def kernel_flops(closed: ClosedJaxpr) -> dict[str, int]:
    """FLOPs of the Pallas kernels of a jaxpr by their names, which a compiled program hides."""
    return dict(_kernel_flops(closed.jaxpr))


def _kernel_flops(jaxpr: Jaxpr) -> Counter[str]:
    found: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        inside: Counter[str] = Counter()
        if equation.primitive.name == "pallas_call":
            found[str(equation.params["name"])] += _equation_flops(equation, jaxpr)
        elif equation.primitive.name == "cond":
            for branch in equation.params["branches"]:
                inside |= _kernel_flops(branch.jaxpr)  # of each kernel the most
        else:
            for inner in _inner(equation):
                inside += _kernel_flops(inner)
        for name, flops in inside.items():
            found[name] += flops * _repeats(equation, jaxpr)
    return found


def _repeats(equation: JaxprEqn, jaxpr: Jaxpr) -> int:
    """How often an equation runs the jaxprs in it, on all devices together."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return params["length"]
    if name == "while":
        return _trip_count(equation, jaxpr)
    if name == "pallas_call":  # its jaxpr is that of one program of the grid
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":  # its jaxpr is that of one device
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _jaxpr_convolution(equation: JaxprEqn) -> int:
    params = equation.params
    numbers = params["dimension_numbers"]
    lhs, rhs = (variable.aval.shape for variable in equation.invars)
    output = equation.outvars[0].aval.shape
    windows = [
        (
            lhs[input_axis],
            Window(rhs[kernel_axis], stride, *padding, input_dilation, kernel_dilation),
        )
        for input_axis, kernel_axis, stride, padding, input_dilation, kernel_dilation in zip(
            numbers.lhs_spec[2:],
            numbers.rhs_spec[2:],
            params["window_strides"],
            params["padding"],
            params["lhs_dilation"],
            params["rhs_dilation"],
            strict=True,
        )
    ]
    samples, outputs = (output[axis] for axis in numbers.out_spec[:2])
    return convolution_flops(samples, outputs, rhs[numbers.rhs_spec[1]], windows)


def _inner(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs that an equation runs, as of a call, checkpoint, custom derivative or loop."""
    if equation.primitive.name == "while":
        yield equation.params["body_jaxpr"].jaxpr
        return
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _trip_count(equation: JaxprEqn, jaxpr: Jaxpr) -> int:
    """Iterations of a loop `while i < stop: ...; i = i + 1` between constants, as of `fori_loop`.

    UnknownTripCount: the loop is of another kind.
    """
    params = equation.params
    condition, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    constants = params["cond_nconsts"], params["body_nconsts"]
    values = [_constant(variable, jaxpr) for variable in equation.invars]
    in_condition = dict(zip(condition.invars, values[: constants[0]], strict=False))
    carry = dict(
        zip(condition.invars[constants[0] :], range(len(values) - sum(constants)), strict=True)
    )
    comparison = condition.eqns[-1] if condition.eqns else None
    if comparison is not None and comparison.primitive.name == "lt":
        counter, stop = comparison.invars
        stop = _value(stop, in_condition)
        place = carry.get(counter) if not isinstance(counter, Literal) else None
        if place is not None and stop is not None:
            start, step = values[sum(constants) + place], _increment(body, constants[1] + place)
            if start is not None and step:
                return max(0, math.ceil((stop - start) / step))
    raise UnknownTripCount("a while_loop that does not count from one constant to another")


def _increment(body: Jaxpr, place: int) -> int | None:
    """The constant that a loop's body adds to the carried value at `place`; None: it adds none."""
    before = body.invars[place]
    after = body.outvars[place - (len(body.invars) - len(body.outvars))]
    for equation in body.eqns:
        if equation.primitive.name == "add" and equation.outvars[0] is after:
            left, right = equation.invars
            if left is before:
                return _value(right, {})
            if right is before:
                return _value(left, {})
    return None


def _constant(variable: Any, jaxpr: Jaxpr) -> int | None:
    return _value(variable, {}) if isinstance(variable, Literal) else None


def _value(variable: Any, known: dict[Any, int | None]) -> int | None:
    if isinstance(variable, Literal):
        return int(variable.val) if getattr(variable.val, "ndim", 0) == 0 else None
    return known.get(variable)


def module_flops(module: Module, runs: Runs) -> int:
    """FLOPs of one call of a compiled program on each chip, without those of custom kernels."""
    return sum(
        count * _computation_flops(module.computations[name]) for name, count in runs.counts.items()
    )


def _computation_flops(computation: Computation) -> int:
    return sum(
        _hlo_product(computation, instruction)
        if instruction.opcode == "dot"
        else _hlo_convolution(computation, instruction)
        for instruction in computation.instructions.values()
        if instruction.opcode in ("dot", "convolution")
    )


def _shape(computation: Computation, name: str) -> tuple[int, ...]:
    return computation.instructions[name].types[0].shape


def _hlo_product(computation: Computation, dot: Instruction) -> int:
    axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", dot.attributes).group(1)
    shape = _shape(computation, dot.operands[0])
    contracted = [shape[int(axis)] for axis in axes.split(",") if axis]
    return product_flops(dot.types[0].shape, contracted)


def _hlo_convolution(computation: Computation, instruction: Instruction) -> int:
    left, right = (_shape(computation, name) for name in instruction.operands)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    inputs, kernel, output = labels.groups()
    windows = _windows(instruction)
    axes = [
        (left[inputs.index(str(axis))], windows[axis])
        for axis in range(len(inputs) - 2)  # the kernel does not move over b and f
    ]
    groups = int(instruction.attribute("batch_group_count") or 1)
    return convolution_flops(
        left[inputs.index("b")] // groups,
        instruction.types[0].shape[output.index("f")],
        right[kernel.index("i")],
        axes,
    )


def _windows(instruction: Instruction) -> list[Window]:
    """Read the windows of a convolution; XLA leaves defaults out: `size=3x3 pad=0_1x0_1`."""
    found = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    parts = dict(part.split("=") for part in found.group(1).split()) if found else {}
    if "size" not in parts:
        return []
    sizes = parts["size"].split("x")

    def numbers(name: str, default: str) -> list[str]:
        return parts[name].split("x") if name in parts else [default] * len(sizes)

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
