"""Checks of the package's jaxtyping annotations in every call that a test makes.

jaxtyping's import hook puts `jaxtyping.jaxtyped` on each function and dataclass of the package, and
beartype does the checking. Only annotations that name arrays are checked: tests put fakes in the
place of other things, and functions without arrays need no wrapper in each call.
"""

import collections.abc
import dataclasses
import functools
import inspect
import operator
import types
import typing

import beartype
import jax
import jaxtyping
import numpy as np


class _NumpyType(type):
    """NumPy's scalars have a shape and a dtype as its arrays do."""

    def __instancecheck__(cls, value):
        return isinstance(value, np.ndarray | np.generic)


class _JaxType(type):
    """JAX takes NumPy's arrays as its own; abstract ones have a shape and a dtype."""

    def __instancecheck__(cls, value):
        return isinstance(value, jax.Array | jax.ShapeDtypeStruct | np.ndarray | np.generic)


class _Numpy(metaclass=_NumpyType):
    pass


class _Jax(metaclass=_JaxType):
    pass


_ACCEPTED = {np.ndarray: _Numpy, jax.Array: _Jax}
# An int may stand for a float, as type checkers have it.
_beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def _names_arrays(annotation) -> bool:
    return getattr(annotation, "__module__", None) == "jaxtyping" or any(
        map(_names_arrays, typing.get_args(annotation))
    )


@functools.cache
def _accepted(annotation):
    """`annotation` with what may stand for its kinds of arrays."""
    if isinstance(annotation, type) and issubclass(annotation, jaxtyping.AbstractArray):
        kind = _ACCEPTED.get(annotation.array_type)
        return annotation.dtype[kind, annotation.dim_str] if kind else annotation
    parts = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin in (types.UnionType, typing.Union):
        return functools.reduce(operator.or_, map(_accepted, parts))
    if any(map(_names_arrays, parts)) and origin is not collections.abc.Callable:
        return origin[tuple(map(_accepted, parts))]
    return annotation


def check(function):
    """`function` with its annotations of arrays checked by beartype."""
    annotations = function.__annotations__.items()
    function.__annotations__ = {
        name: _accepted(annotation) for name, annotation in annotations if _names_arrays(annotation)
    }
    return _beartype(function)


def _annotations(decorated):
    if inspect.isclass(decorated):
        if not dataclasses.is_dataclass(decorated):
            return {}
        # JAX makes its pytrees anew with whatever a transformation puts in the place of arrays.
        is_pytree = not jax.tree_util.all_leaves([decorated.__new__(decorated)])
        return {} if is_pytree else decorated.__annotations__
    if isinstance(decorated, property):
        decorated = decorated.fget
    return getattr(inspect.unwrap(decorated), "__annotations__", {})


def install() -> None:
    """Call it before the package is imported."""
    jaxtyped = jaxtyping.jaxtyped

    def jaxtyped_if_it_has_arrays(*, typechecker):
        def decorate(function):
            if any(map(_names_arrays, _annotations(function).values())):
                return jaxtyped(function, typechecker=typechecker)
            return function

        return decorate

    jaxtyping.jaxtyped = jaxtyped_if_it_has_arrays
    jaxtyping.install_import_hook("imagewam_jax", f"{__name__}.check")
