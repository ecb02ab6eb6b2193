"""FLOPs of what a function computes, loops included: counted in its jaxpr.

XLA's `cost_analysis` counts the body of a loop once, however often it runs; here it is multiplied.
Counted are products of matrices and convolutions, those that the backward pass computes again
included. Nothing is compiled, and arguments may be abstract.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from imagewam_jax.tpu_plans.contractions import Window, convolution_flops, product_flops


class UnknownTripCount(ValueError):
    """A loop that runs until something holds: nobody knows how often."""


def function_flops(function: Callable, *arguments: Any) -> int:
    """FLOPs of one call of a function; arguments can be `jax.ShapeDtypeStruct`s."""
    return jaxpr_flops(jax.make_jaxpr(function)(*arguments))


def jaxpr_flops(closed: ClosedJaxpr) -> int:
    """FLOPs of a jaxpr.

    Of the branches of a `cond` the most expensive one counts. UnknownTripCount: a `while_loop`
    that does not count from one constant to another.
    """
    return _flops(closed.jaxpr)


def _flops(jaxpr: Jaxpr) -> int:
    return sum(_equation_flops(equation, jaxpr) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn, jaxpr: Jaxpr) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return product_flops(equation.outvars[0].aval.shape, [shape[axis] for axis in contracted])
    if name == "conv_general_dilated":
        return _convolution(equation)
    if name == "scan":
        return params["length"] * _flops(params["jaxpr"].jaxpr)
    if name == "cond":
        return max(_flops(branch.jaxpr) for branch in params["branches"])
    if name == "while":
        body = _flops(params["body_jaxpr"].jaxpr)
        return body * _trip_count(equation, jaxpr) if body else 0
    inner = sum(map(_flops, _inner(params)))
    if name == "pallas_call":  # its jaxpr is that of one cell of the grid
        return inner * math.prod(params["grid_mapping"].grid)
    if name == "shard_map":  # its jaxpr is that of one device
        return inner * math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return inner


def _convolution(equation: JaxprEqn) -> int:
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


def _inner(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Every jaxpr in an equation's parameters: of a call, a checkpoint, a custom derivative."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _trip_count(equation: JaxprEqn, jaxpr: Jaxpr) -> int:
    """Of a loop `while i < stop: ...; i = i + 1` between constants, as `fori_loop` makes it."""
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
    """What a loop's body adds to the carried value at some place, if it is a constant."""
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
