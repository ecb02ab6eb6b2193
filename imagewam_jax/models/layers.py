"""Parts that all transformers here are built from.

Parameters are `nnx.Param`s with the metadata `axes`: one logical name per array axis
(`layer, embed, heads, head_dim, mlp, ...`), which `models.partitioning` maps to mesh axes.
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

from imagewam_jax.models.partitioning import constrain, is_divided, with_whole_rows
from imagewam_jax.models.remat import MLP, named

M = TypeVar("M", bound=nnx.Module)

# Uniform in +-1/sqrt(fan_in): what the official code leaves its linear layers at.
fan_in_uniform = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Axis(NamedTuple):
    """One side of a kernel: its logical name and its size.

    Where several axes lie in one, such as heads and their channels, it has the name of the
    outermost, which is the one that a mesh divides.
    """

    name: str
    size: int


class Linear(nnx.Module):
    """Multiplies the last axis of the input by a kernel `[inputs, outputs]`.

    Kernels are matrices, also where their outputs are heads: with three axes a TPU has to lay them
    out anew at every call, or at every layer of a scan.
    """

    def __init__(
        self,
        inputs: Axis,
        outputs: Axis,
        *,
        bias: bool = False,
        init: Callable = fan_in_uniform,
        rngs: nnx.Rngs,
    ):
        kernel = init(rngs.params(), (inputs.size, outputs.size), jnp.float32)
        self.kernel = nnx.Param(kernel, axes=(inputs.name, outputs.name))
        bound = 1 / math.sqrt(inputs.size)
        self.bias = (
            nnx.Param(
                jax.random.uniform(rngs.params(), (outputs.size,), minval=-bound, maxval=bound),
                axes=(outputs.name,),
            )
            if bias
            else None
        )
        self.lora: LowRank | None = nnx.data(None)  # see `models.lora`

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        # A product of two matrices: with more axes, the gradient of the kernel is several times
        # slower on CPU. Tokens that are divided must not be merged with the batch.
        kernel, leading = self.kernel[...], x.shape[:-1]
        rows = leading if is_divided("tokens") else (-1,)
        x = x.astype(kernel.dtype).reshape(*rows, kernel.shape[0])
        inputs, outputs = self.kernel.get_metadata("axes")[-2:]
        x = with_whole_rows(x, inputs, outputs)
        y = x @ kernel if self.lora is None else x @ kernel + self.lora(x)
        y = with_whole_rows(y, outputs, inputs)
        y = y.reshape(*leading, kernel.shape[1])
        return y if self.bias is None else y + self.bias[...]


class LowRank(nnx.Module):
    """An addition to a kernel `[inputs, outputs]`: `scale` times the product of two thin matrices,
    `a` [inputs, rank] and `b` [rank, outputs]."""

    def __init__(self, a: nnx.Param, b: nnx.Param, scale: float):
        self.a, self.b, self.scale = a, b, scale

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        return self.scale * (x @ self.a[...] @ self.b[...])


def split_heads(x: Float[Array, "b s width"], head_dim: int) -> Float[Array, "b s n h"]:
    """What a kernel gives for all heads, head by head."""
    return x.reshape(*x.shape[:-1], -1, head_dim)


def merge_heads(x: Float[Array, "b s n h"]) -> Float[Array, "b s width"]:
    """The inverse of `split_heads`."""
    return x.reshape(*x.shape[:-2], -1)


def layer_norm(x: Float[Array, "... d"], eps: float = 1e-6) -> Float[Array, "... d"]:
    """Layer norm without scale or shift; float32 inside, the dtype of `x` outside."""
    x32 = x.astype(jnp.float32)
    centered = x32 - x32.mean(-1, keepdims=True)
    variance = jnp.square(centered).mean(-1, keepdims=True)
    return (centered * jax.lax.rsqrt(variance + eps)).astype(x.dtype)


class LayerNorm(nnx.Module):
    """`layer_norm`, then a learned scale and shift."""

    def __init__(self, dim: int):
        self.scale = nnx.Param(jnp.ones(dim), axes=("embed",))
        self.bias = nnx.Param(jnp.zeros(dim), axes=("embed",))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        return layer_norm(x) * self.scale[...] + self.bias[...]


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
        embed, inner = Axis("embed", dim), Axis("mlp", hidden)
        self.gate = Linear(embed, inner, rngs=rngs)
        self.up = Linear(embed, inner, rngs=rngs)
        self.out = Linear(inner, embed, rngs=rngs)

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        hidden = jax.nn.silu(named(self.gate(x), MLP)) * named(self.up(x), MLP)
        return self.out(constrain(hidden, "batch", "tokens", "mlp"))


class TimeEmbedding(nnx.Module):
    """Sinusoids of a flow-matching time in [0, 1], then a two-layer MLP.

    What it gives broadcasts over tokens: where each has a time of its own, rows are chosen of what
    is made of it.
    """

    width = 256

    def __init__(self, dim: int, *, bias: bool = False, rngs: nnx.Rngs):
        self.wi = Linear(Axis("time", self.width), Axis("embed", dim), bias=bias, rngs=rngs)
        self.wo = Linear(Axis("embed", dim), Axis("modulation", dim), bias=bias, rngs=rngs)

    def __call__(self, time_b: Float[Array, " b"]) -> Float[Array, "b 1 d"]:
        return self.mlp(sinusoids(time_b, self.width))

    def mlp(self, x: Float[Array, "b width"]) -> Float[Array, "b 1 d"]:
        """The embedding of a time whose sinusoids are `x`."""
        return self.wo(jax.nn.silu(self.wi(x)))[:, None]


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
    """Shift, scale and gate of one residual branch; each broadcasts over tokens, or has a row for
    each of them."""

    shift: Float[Array, "b #s d"]
    scale: Float[Array, "b #s d"]
    gate: Float[Array, "b #s d"]


class ShiftScale(NamedTuple):
    """The modulation of an output head, which has no residual branch to gate."""

    shift: Float[Array, "b #s d"]
    scale: Float[Array, "b #s d"]


class ModulationHead(nnx.Module):
    """Maps the time embedding to the modulations of `branches` residual branches."""

    def __init__(self, dim: int, branches: int, *, bias: bool = False, rngs: nnx.Rngs):
        # Shift, scale and gate of the first branch, then those of the next.
        out = Axis("modulation", branches * 3 * dim)
        self.linear = Linear(Axis("embed", dim), out, bias=bias, rngs=rngs)
        self.branches = branches

    def __call__(self, time_embedding: Float[Array, "b s d"]) -> tuple[Modulation, ...]:
        y = self.linear(jax.nn.silu(time_embedding))
        parts = jnp.split(y, 3 * self.branches, axis=-1)
        return tuple(Modulation(*parts[3 * i : 3 * i + 3]) for i in range(self.branches))


def modulate(
    x: Float[Array, "b s d"], shift: Float[Array, "#b #s d"], scale: Float[Array, "#b #s d"]
) -> Float[Array, "b s d"]:
    """Layer norm, then `(1 + scale) * x + shift`."""
    return (1 + scale) * layer_norm(x) + shift


class OutputHead(nnx.Module):
    """The last, time-modulated projection of tokens to their velocity."""

    def __init__(self, dim: int, out: Axis, *, bias: bool = False, rngs: nnx.Rngs):
        embed, modulation = Axis("embed", dim), Axis("modulation", 2 * dim)
        self.modulation = Linear(embed, modulation, bias=bias, rngs=rngs)
        self.linear = Linear(embed, out, bias=bias, rngs=rngs)

    def condition(self, time_embedding: Float[Array, "b s d"]) -> ShiftScale:
        """Not part of `__call__`, so that many times share one matrix product."""
        y = self.modulation(jax.nn.silu(time_embedding))
        return ShiftScale(*jnp.split(y, 2, axis=-1))

    def __call__(self, x: Float[Array, "b s d"], condition: ShiftScale) -> Float[Array, "b s out"]:
        return self.linear(modulate(x, condition.shift, condition.scale))


class Rope(NamedTuple):
    """Rotation tables: the first half of the channels is turned against the second (`rotate`).

    cos: each value is there for both of the channels that it turns. sin: it is negative for the
    first of them.
    """

    cos: Float[Array, "#b s 1 h"]
    sin: Float[Array, "#b s 1 h"]


def grid_positions(grid: tuple[int, int], first: int) -> Int[np.ndarray, "cells 3"]:
    """The position `(first, row, column)` of each cell of an image, row by row."""
    rows, columns = np.indices(grid).reshape(2, -1)
    return np.stack([np.full_like(rows, first), rows, columns], -1)


def rope_tables(
    positions: Int[Array, "#b s axes"],
    axes_dim: Sequence[int],
    theta: float,
    dtype: jnp.dtype,
) -> Rope:
    """Rotation tables for integer positions on several axes (docs/spec/imagewam_flux2.md, 1.4).

    With `dtype=bfloat16`, frequencies, angles and tables are each rounded to bfloat16, as in
    a bfloat16 run of the official code, and with `dtype=float64` only the tables are rounded; these
    are always float32. They are made by NumPy and looked up, so they are bit for bit the same on
    every accelerator. Positions are below `MAX_POSITION`; a larger one rotates by NaN rather than
    by a wrong angle.
    """
    parts = []
    for axis, dim in enumerate(axes_dim):
        table = _cos_sin(dim, theta, np.dtype(dtype))
        ids = positions[..., axis]
        parts.append(jnp.take(jnp.asarray(table), ids, axis=0, mode="fill", fill_value=jnp.nan))
    tables = jnp.concatenate(parts, axis=-2)[:, :, None]  # [b, s, 1, pairs, cos/sin]
    cos, sin = tables[..., 0], tables[..., 1]
    return Rope(jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1))


MAX_POSITION = 2048


def _cos_sin(dim: int, theta: float, dtype: np.dtype) -> Float[np.ndarray, "position pairs 2"]:
    """Float32 `[cos, sin]` of every position, with each step rounded to `dtype`."""

    def rounded(x):
        return x if dtype == np.float64 else x.astype(np.float32).astype(dtype).astype(np.float32)

    exponents = rounded(np.arange(0, dim, 2) / dim)
    frequencies = rounded(1 / rounded(np.float32(theta) ** exponents))
    angles = rounded(rounded(np.arange(MAX_POSITION))[:, None] * frequencies)
    return np.stack([rounded(np.cos(angles)), rounded(np.sin(angles))], -1).astype(np.float32)


def rotate(x: Float[Array, "b s n h"], rope: Rope) -> Float[Array, "b s n h"]:
    """Turns channel i against channel i + h/2, in float32: `(a cos - b sin, b cos + a sin)`.

    The official code turns adjacent channels. Taking them apart would be among the dearest
    operations on a TPU, whose vector lanes are the channels, so the rows of q and k are in another
    order here (see `weights.layouts.flux2.PAIRS`). Scores are sums over channels, which no order
    changes. The halves change places before the cast, while they are half as large.
    """
    swapped = jnp.roll(x, x.shape[-1] // 2, axis=-1)
    x32, swapped32 = x.astype(jnp.float32), swapped.astype(jnp.float32)
    return (x32 * rope.cos + swapped32 * rope.sin).astype(x.dtype)


def mark_unread(module: nnx.Module) -> None:
    """Marks parameters that nothing reads, and that are there because official checkpoints have
    them: they are not trained and take no part in any count of work."""
    for _, variable in nnx.iter_graph(module):
        if isinstance(variable, nnx.Variable):
            variable.set_metadata(is_read=False)


def is_read(variable: nnx.Variable) -> bool:
    """Whether something computes with a parameter: false of those that `mark_unread` has marked."""
    return variable.get_metadata("is_read", True)


def recomputed(
    layers: M, x: Float[Array, "b s d"], call: Callable[[M, Array], Array]
) -> Float[Array, "b s d"]:
    """`x` after `call(layer, x)` of every layer of a stack, of which the backward pass keeps
    nothing but the first `x` of each."""

    def step(x, layer):
        return call(layer, x), None

    return jax.lax.scan(jax.checkpoint(step, prevent_cse=False), x, layers)[0]


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
