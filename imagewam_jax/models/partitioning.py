"""How a mesh divides arrays: one table from logical axes to mesh axes.

The model names the axes of its parameters and activations (`batch, tokens, heads, mlp, ...`). What
the names mean on the devices at hand follows from the mesh that `jax.set_mesh` has set while a
function is traced; without one nothing is divided. JAX traces a jitted function anew for each mesh.

    data      copies of the model; batches are divided
    fsdp      batches are divided, and parameters too: each layer's are gathered when it runs
    tensor    heads and MLP channels are divided
    context   tokens are divided; every device sees all keys
"""

from collections.abc import Sequence
from types import MappingProxyType

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Shaped

MESH_AXES = ("data", "fsdp", "tensor", "context")

# The mesh axes that divide each logical axis. Activations have `batch` and `tokens`, parameters the
# rest; both have `heads` and `mlp`.
RULES = MappingProxyType(
    {
        "batch": ("data", "fsdp"),
        "tokens": ("context",),
        "heads": ("tensor",),
        "mlp": ("tensor",),
        "modulation": ("tensor",),
        "embed": ("fsdp",),
        # Small, or the axis of a scan.
        "layer": (),
        "head_dim": (),
        "channels": (),
        "text": (),
        "time": (),
        "action": (),
        "proprio": (),
        "reference": (),
        "rank": (),
    }
)


def partition_spec(axes: Sequence[str]) -> PartitionSpec:
    """How an array whose axes have these logical names is divided, on any mesh of MESH_AXES."""
    return PartitionSpec(*(RULES[name] or None for name in axes))


def constrain(x: Shaped[Array, "..."], *axes: str | None) -> Shaped[Array, "..."]:
    """Say how `x`, whose axes have these logical names (None: never divided), lies on the mesh."""
    spec = PartitionSpec(*(dividing_axes(name) or None for name in axes))
    # Where nothing is divided nothing is said: the compiler may still choose.
    return jax.lax.with_sharding_constraint(x, spec) if any(spec) else x


def with_whole_rows(x: Shaped[Array, "*rows last"], last: str, other: str) -> Shaped[Array, "..."]:
    """`x` with its last axis whole on every device, if the kernel is sharded over `fsdp` along this
    axis (`last`) and over `tensor` along the `other`.

    Left to itself, XLA may divide the axis over `tensor`, and then it gives samples the results,
    or the gradients, of others where `data`, `fsdp` and `tensor` all divide (seen with jax 0.10.2).
    """
    if dividing_axes(last) != ("fsdp",) or dividing_axes(other) != ("tensor",):
        return x
    leading = (PartitionSpec.UNCONSTRAINED,) * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*leading, None))


def is_divided(name: str) -> bool:
    """Whether a logical axis is spread over several devices."""
    return bool(dividing_axes(name))


def dividing_axes(name: str | None) -> tuple[str, ...]:
    """The axes of the current mesh, of more than one device, that divide a logical axis."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return tuple(axis for axis in RULES.get(name, ()) if sizes.get(axis, 1) > 1)
