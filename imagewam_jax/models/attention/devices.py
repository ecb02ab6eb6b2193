"""Kernels on devices: which kind runs them, and how a mesh divides what they compute.

The compiler does not divide a kernel as it divides operations of JAX, so each device is told to run
it on its own samples, heads and queries.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imagewam_jax.models.partitioning import dividing_axes

P = jax.sharding.PartitionSpec
# (q, k, v, length_b) -> attended; arrays are [b, tokens, n, h].
Kernel = Callable[..., Float[Array, "b s n h"]]


def target_platform() -> str:
    """The platform, "cpu", "gpu" or "tpu", that a function is being traced for: that of the mesh,
    which may be of devices that are not here, or JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    kind = device.device_kind.lower()
    return next((name for name in ("tpu", "cpu") if kind.startswith(name)), "gpu")


def on_each_device(
    kernel: Kernel,
    q_bsnh: Float[Array, "b s n h"],
    k_btnh: Float[Array, "b t n h"],
    v_btnh: Float[Array, "b t n h"],
    length_b: Int[Array, " b"],
) -> Float[Array, "b s n h"]:
    """Run a kernel on the part of each device of the current mesh.

    Samples, heads and queries are divided as `models.partitioning` says, keys are whole. Queries
    that their devices cannot share evenly are padded with zeros here.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = set(mesh.axis_names) - set(mesh.manual_axes)  # by the others the caller has divided
    batch, tokens, heads = (
        tuple(axis for axis in dividing_axes(name) if axis in free) or None
        for name in ("batch", "tokens", "heads")
    )
    if not (batch or tokens or heads):
        return kernel(q_bsnh, k_btnh, v_btnh, length_b)
    count = q_bsnh.shape[1]
    q_bsnh = pad_tokens(q_bsnh, math.prod(mesh.shape[axis] for axis in tokens or ()))
    queries, keys = P(batch, tokens, heads), P(batch, None, heads)
    attended = jax.shard_map(
        kernel,
        in_specs=(queries, keys, keys, P(batch)),
        out_specs=queries,
        axis_names=free,
        check_vma=False,  # kernels do not say over which axes their results vary
    )(q_bsnh, k_btnh, v_btnh, length_b)
    return attended[:, :count]


def pad_tokens(x: Float[Array, "b t n h"], multiple: int) -> Float[Array, "b padded n h"]:
    """`x` with zeros behind its tokens, so that their number is a multiple of another."""
    missing = -x.shape[1] % multiple
    return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))) if missing else x
