"""Parts that all transformers here are built from.

Parameters are `nnx.Param`s with the metadata `axes`: one logical name per array axis
(`layer, embed, heads, head_dim, mlp, ...`), which `training.sharding` maps to mesh axes.
A module computes in the dtype of its parameters; statistics of norms are always float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from imagewam_jax.models.partitioning import constrain, is_divided

M = TypeVar("M", bound=nnx.Module)

# Uniform in +-1/sqrt(fan_in): what the official code leaves its linear layers at.
fan_in_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Linear(nnx.Module):
    """Contracts the trailing axes of the input with a kernel `[*inputs, *outputs]`."""

    def __init__(
        self,
        inputs: dict[str, int],
        outputs: dict[str, int],
        *,
        bias: bool = False,
        init: Callable = fan_in_uniform,
        rngs: nnx.Rngs,
    ):
        """Both dictionaries map the logical name of each axis, in order, to its size."""
        in_shape, out_shape = tuple(inputs.values()), tuple(outputs.values())
        # Initializers see a matrix, so that fan-in is that of the whole contraction.
        matrix = (math.prod(in_shape), math.prod(out_shape))
        kernel = init(rngs.params(), matrix, jnp.float32).reshape(in_shape + out_shape)
        self.kernel = nnx.Param(kernel, axes=(*inputs, *outputs))
        bound = 1 / math.sqrt(matrix[0])
        self.bias = (
            nnx.Param(
                jax.random.uniform(rngs.params(), out_shape, minval=-bound, maxval=bound),
                axes=tuple(outputs),
            )
            if bias
            else None
        )
        self.n_in = len(in_shape)
        self.lora: LowRank | None = nnx.data(None)  # see `models.lora`

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        # A product of two matrices: with more axes, the gradient of the kernel is several times
        # slower on CPU. Of the kernel's merged axes only the first may be sharded, so q, k and v
        # (and gate and up) have kernels of their own.
        kernel = self.kernel[...]
        outputs, leading = kernel.shape[self.n_in :], x.shape[: x.ndim - self.n_in]
        matrix = kernel.reshape(math.prod(kernel.shape[: self.n_in]), -1)
        # The input's axes likewise: tokens that are divided must not be merged with the batch.
        rows = leading if is_divided("tokens") else (-1,)
        x = x.astype(kernel.dtype).reshape(*rows, matrix.shape[0])
        y = x @ matrix if self.lora is None else x @ matrix + self.lora(x)
        y = y.reshape(*leading, *outputs)
        return y if self.bias is None else y + self.bias[...]


class LowRank(nnx.Module):
    """An addition to a kernel `[*inputs, *outputs]`: `scale` times the product of two thin
    matrices, `a` [*inputs, rank] and `b` [rank, *outputs]."""

    def __init__(self, a: nnx.Param, b: nnx.Param, scale: float):
        self.a, self.b, self.scale = a, b, scale

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        a, b = self.a[...], self.b[...]
        rank = a.shape[-1]
        return self.scale * (x @ a.reshape(-1, rank) @ b.reshape(rank, -1))


def layer_norm(x: Float[Array, "... d"], eps: float = 1e-6) -> Float[Array, "... d"]:
    """Layer norm without scale or shift; float32 inside, the dtype of `x` outside."""
    x32 = x.astype(jnp.float32)
    centered = x32 - x32.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return (centered * jax.lax.rsqrt(variance + eps)).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Normalizes in float32, rounds to the input's dtype, then scales (in that order)."""

    def __init__(self, dim: int, *, axis: str = "head_dim", eps: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(dim), axes=(axis,))
        self.eps = eps

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        x32 = x.astype(jnp.float32)
        rms = jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        return (x32 * rms).astype(x.dtype) * self.scale[...].astype(x.dtype)


class GatedMLP(nnx.Module):
    """`W_out (silu(W_gate x) * W_up x)`."""

    def __init__(self, dim: int, hidden: int, *, rngs: nnx.Rngs):
        self.gate = Linear({"embed": dim}, {"mlp": hidden}, rngs=rngs)
        self.up = Linear({"embed": dim}, {"mlp": hidden}, rngs=rngs)
        self.out = Linear({"mlp": hidden}, {"embed": dim}, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        hidden = jax.nn.silu(self.gate(x)) * self.up(x)
        return self.out(constrain(hidden, "batch", "tokens", "mlp"))


class TimeEmbedding(nnx.Module):
    """Sinusoids of a flow-matching time in [0, 1], then a two-layer MLP."""

    width = 256

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.wi = Linear({"time": self.width}, {"embed": dim}, rngs=rngs)
        self.wo = Linear({"embed": dim}, {"modulation": dim}, rngs=rngs)

    def __call__(self, time_b: Float[Array, " b"]) -> Float[Array, "b d"]:
        return self.wo(jax.nn.silu(self.wi(sinusoids(time_b, self.width))))


def sinusoids(time_b: Float[Array, " b"], width: int) -> Float[Array, "b width"]:
    """`[cos | sin]` of 1000 * time over `width / 2` frequencies (docs/spec/imagewam_flux2.md, 1.2).

    The factor 1000 is applied in the dtype of `time_b`, as the official code does; the
    sinusoids are float32 and come back in that dtype.
    """
    half = width // 2
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half).astype(np.float32)
    angles = (1000 * time_b)[:, None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1).astype(time_b.dtype)


class Modulation(NamedTuple):
    """Shift, scale and gate of one residual branch; each broadcasts over tokens."""

    shift: Float[Array, "b 1 d"]
    scale: Float[Array, "b 1 d"]
    gate: Float[Array, "b 1 d"]


class ModulationHead(nnx.Module):
    """Maps the time embedding to `branches` modulations, which all layers of a kind share."""

    def __init__(self, dim: int, branches: int, *, rngs: nnx.Rngs):
        outputs = {"branch": branches, "shift_scale_gate": 3, "modulation": dim}
        self.linear = Linear({"embed": dim}, outputs, rngs=rngs)

    def __call__(self, time_embedding: Float[Array, "b d"]) -> tuple[Modulation, ...]:
        y = self.linear(jax.nn.silu(time_embedding))[:, None]
        return tuple(
            Modulation(y[:, :, i, 0], y[:, :, i, 1], y[:, :, i, 2]) for i in range(y.shape[2])
        )


def modulate(
    x: Float[Array, "b s d"], shift: Float[Array, "#b 1 d"], scale: Float[Array, "#b 1 d"]
) -> Float[Array, "b s d"]:
    """Layer norm, then `(1 + scale) * x + shift`."""
    return (1 + scale) * layer_norm(x) + shift


class OutputHead(nnx.Module):
    """The last, time-modulated projection of tokens to their velocity."""

    def __init__(self, dim: int, out: dict[str, int], *, rngs: nnx.Rngs):
        outputs = {"shift_scale": 2, "modulation": dim}
        self.modulation = Linear({"embed": dim}, outputs, rngs=rngs)
        self.linear = Linear({"embed": dim}, out, rngs=rngs)

    def condition(self, time_embedding: Float[Array, "b d"]) -> Float[Array, "b 1 2 d"]:
        """Shift and scale; not part of `__call__`, so that many times share one matrix product."""
        return self.modulation(jax.nn.silu(time_embedding))[:, None]

    def __call__(
        self, x: Float[Array, "b s d"], condition: Float[Array, "#b 1 2 d"]
    ) -> Float[Array, "b s out"]:
        return self.linear(modulate(x, condition[:, :, 0], condition[:, :, 1]))


class Rope(NamedTuple):
    """Rotation tables, each value repeated for the two channels that it turns."""

    cos: Float[Array, "#b s 1 h"]
    sin: Float[Array, "#b s 1 h"]


def rope_tables(
    positions: Int[Array, "#b s axes"],
    axes_dim: Sequence[int],
    theta: float,
    dtype: jnp.dtype,
) -> Rope:
    """Rotation tables for integer positions on several axes (docs/spec/imagewam_flux2.md, 1.4).

    With `dtype=bfloat16`, frequencies, angles and tables are each rounded to bfloat16, as in
    a bfloat16 run of the official code; the tables themselves are always float32. They are
    made by NumPy and looked up, so they are bit for bit the same on every accelerator. Positions
    are below `MAX_POSITION`; a larger one rotates by NaN rather than by a wrong angle.
    """
    parts = []
    for axis, dim in enumerate(axes_dim):
        table = _cos_sin(dim, theta, np.dtype(dtype))
        ids = positions[..., axis]
        parts.append(jnp.take(jnp.asarray(table), ids, axis=0, mode="fill", fill_value=jnp.nan))
    tables = jnp.concatenate(parts, axis=-2)  # [b, s, pairs, cos/sin]
    tables = jnp.repeat(tables, 2, axis=-2)[:, :, None]
    return Rope(tables[..., 0], tables[..., 1])


MAX_POSITION = 2048


def _cos_sin(dim: int, theta: float, dtype: np.dtype) -> Float[np.ndarray, "position pairs 2"]:
    """Float32 `[cos, sin]` of every position, with each step rounded to `dtype`."""

    def rounded(x):
        return x.astype(np.float32).astype(dtype).astype(np.float32)

    exponents = rounded(np.arange(0, dim, 2) / dim)
    frequencies = rounded(1 / rounded(np.float32(theta) ** exponents))
    angles = rounded(rounded(np.arange(MAX_POSITION))[:, None] * frequencies)
    return np.stack([rounded(np.cos(angles)), rounded(np.sin(angles))], -1)


def rotate(x: Float[Array, "b s n h"], rope: Rope) -> Float[Array, "b s n h"]:
    """Turns adjacent channel pairs, in float32: `(x0 cos - x1 sin, x1 cos + x0 sin)`."""
    x32 = x.astype(jnp.float32)
    even, odd = x32[..., 0::2], x32[..., 1::2]
    swapped = jnp.stack([-odd, even], -1).reshape(x.shape)
    return (x32 * rope.cos + swapped * rope.sin).astype(x.dtype)


def stacked(make: Callable[[nnx.Rngs], M], count: int, rngs: nnx.Rngs) -> M:
    """`count` equal modules as one, every parameter with a leading `layer` axis.

    The result goes through `jax.lax.scan` as it is; one slice of it is one layer. Plain
    `jax.vmap` because modules are pytrees; only the axis names need the extra entry.
    """
    keys = jax.random.split(rngs.params(), count)
    layers = jax.vmap(lambda key: make(nnx.Rngs(params=key)))(keys)
    for _, variable in nnx.iter_graph(layers):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(axes=("layer", *variable.get_metadata("axes")))
    return layers
