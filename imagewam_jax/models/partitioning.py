"""What the axes of activations are, so that a mesh can divide them.

The model says it here by logical names (`batch, tokens, heads, mlp`) and knows no mesh. Whoever
has one says what follows from the names, with `partitioned`, while the model is traced; otherwise
nothing does.
"""

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

# Of each logical axis, the mesh axes that divide it.
Rules = Mapping[str, tuple[str, ...]]

_partitioning: ContextVar[tuple[Mesh, Rules] | None] = ContextVar("partitioning", default=None)


@contextlib.contextmanager
def partitioned(mesh: Mesh, rules: Rules) -> Iterator[None]:
    """Activations of what is traced within are divided by these rules."""
    token = _partitioning.set((mesh, rules))
    try:
        yield
    finally:
        _partitioning.reset(token)


def constrain(x: Shaped[Array, "..."], *axes: str | None) -> Shaped[Array, "..."]:
    """`x`, whose axes have these names (None: never divided), where its mesh wants it."""
    if _partitioning.get() is None:
        return x
    mesh, _ = _partitioning.get()
    spec = PartitionSpec(*(_dividing(name) or None for name in axes))
    if not any(spec):  # nothing is divided, so that nothing need be said
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def is_divided(name: str) -> bool:
    """Whether a logical axis is spread over several devices."""
    return bool(_dividing(name))


def _dividing(name: str | None) -> tuple[str, ...]:
    """The mesh axes of more than one device that divide a logical axis."""
    if name is None or _partitioning.get() is None:
        return ()
    mesh, rules = _partitioning.get()
    return tuple(axis for axis in rules[name] if mesh.shape[axis] > 1)
