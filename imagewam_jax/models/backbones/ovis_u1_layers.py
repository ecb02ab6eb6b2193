"""The layers of Ovis-U1's transformer and of its action expert (docs/spec/imagewam_ovis_u1.md, 5).

All kernels have biases. A layer makes its modulation itself, from a vector of the time and the
text. In a double layer images attend twice: together with the text, and without it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from imagewam_jax.models.attention import KV, attend_xla
from imagewam_jax.models.blocks import (
    ActionLayout,
    AttentionLayout,
    Heads,
    Tokens,
    attend_action,
    attend_streams,
    project_heads,
)
from imagewam_jax.models.layers import (
    Axis,
    LayerNorm,
    Linear,
    Modulation,
    ModulationHead,
    RMSNorm,
    Rope,
    mark_unread,
    merge_heads,
    modulate,
)
from imagewam_jax.models.partitioning import constrain
from imagewam_jax.models.remat import MLP, OUT, named

# Of the time, and of the text where there is one; for all tokens, or one for each.
Vector = Float[Array, "#b #s d"]


class LayerSizes(NamedTuple):
    """Width of the tokens, heads and their channels, and inner width of an MLP."""

    dim: int
    heads: int
    head_dim: int
    mlp_dim: int


class DoubleContext(NamedTuple):
    """What the context leaves to the action in a double layer: keys and values of [reference |
    text] for the joint attention, and of references for that of images alone."""

    joint: KV
    image: KV


class AttentionKernels(nnx.Module):
    """The kernels of one attention, without norms."""

    def __init__(self, sizes: LayerSizes, *, rngs: nnx.Rngs):
        embed, width = Axis("embed", sizes.dim), Axis("heads", sizes.heads * sizes.head_dim)
        self.head_dim = sizes.head_dim
        self.q, self.k, self.v = (Linear(embed, width, bias=True, rngs=rngs) for _ in range(3))
        self.out = Linear(width, embed, bias=True, rngs=rngs)

    def project(self, z: Tokens) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values."""
        q, k, v = (project_heads(linear, z, self.head_dim) for linear in (self.q, self.k, self.v))
        return q, k, v

    def added(self, attended: Heads) -> Tokens:
        """What the attention adds to the tokens, before its gate."""
        return named(self.out(merge_heads(attended)), OUT)


class NormedAttentionKernels(AttentionKernels):
    """The same, with norms of queries and keys."""

    def __init__(self, sizes: LayerSizes, *, rngs: nnx.Rngs):
        super().__init__(sizes, rngs=rngs)
        self.q_norm, self.k_norm = RMSNorm(sizes.head_dim), RMSNorm(sizes.head_dim)

    def project(self, z: Tokens) -> tuple[Heads, Heads, Heads]:
        """Normed queries and keys, and values; not yet rotated."""
        q, k, v = super().project(z)
        return self.q_norm(q), self.k_norm(k), v


class PlainMLP(nnx.Module):
    """Two linear layers with an activation between; the second can do without a bias."""

    def __init__(
        self, dim: int, hidden: int, activation: Callable, *, out_bias: bool = True, rngs: nnx.Rngs
    ):
        embed, inner = Axis("embed", dim), Axis("mlp", hidden)
        self.activation = activation
        self.wi = Linear(embed, inner, bias=True, rngs=rngs)
        self.wo = Linear(inner, embed, bias=out_bias, rngs=rngs)

    def __call__(self, x: Tokens) -> Tokens:
        hidden = self.activation(named(self.wi(x), MLP))
        return self.wo(constrain(hidden, "batch", "tokens", "mlp"))


def gelu(x: Tokens) -> Tokens:
    """The approximation by a tanh."""
    return jax.nn.gelu(x, approximate=True)


class RefinerLayer(nnx.Module):
    """Text and a class token that attend to each other, without positions."""

    def __init__(self, sizes: LayerSizes, *, rngs: nnx.Rngs):
        dim = sizes.dim
        # The gates of attention and MLP.
        self.gates = Linear(Axis("embed", dim), Axis("modulation", 2 * dim), bias=True, rngs=rngs)
        self.attention_norm, self.mlp_norm = LayerNorm(dim), LayerNorm(dim)
        self.attention = AttentionKernels(sizes, rngs=rngs)
        self.mlp = PlainMLP(dim, sizes.mlp_dim, jax.nn.silu, rngs=rngs)

    def __call__(self, x: Tokens, mean: Vector, length_b: Int[Array, " b"]) -> Tokens:
        """The tokens after this layer; the class token is the first, padding the last.

        mean: what gates are made of. length_b: how many tokens are no padding.
        """
        on_attention, on_mlp = jnp.split(self.gates(jax.nn.silu(mean)), 2, axis=-1)
        q, k, v = self.attention.project(self.attention_norm(x))
        # In plain JAX: some kernels do not take heads as narrow as these, and text is short.
        attended = attend_xla(q, [KV(k, v)], length_b)
        # Padding sees the class token alone: the official code reads it where it imagines.
        is_padding = jnp.arange(x.shape[1]) >= length_b[:, None]
        attended = jnp.where(is_padding[..., None, None], v[:, :1], attended)
        x = x + on_attention * self.attention.added(attended)
        return x + on_mlp * named(self.mlp(self.mlp_norm(x)), OUT)


class TextBlock(nnx.Module):
    """The text's part of a double layer."""

    def __init__(self, sizes: LayerSizes, *, rngs: nnx.Rngs):
        self.modulation = ModulationHead(sizes.dim, 2, bias=True, rngs=rngs)
        self.joint = NormedAttentionKernels(sizes, rngs=rngs)
        self.mlp = PlainMLP(sizes.dim, sizes.mlp_dim, gelu, rngs=rngs)

    def project(self, x: Tokens, on: tuple[Modulation, ...]) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values of the joint attention."""
        return self.joint.project(modulate(x, on[0].shift, on[0].scale))

    def finish(self, x: Tokens, attended: Heads, on: tuple[Modulation, ...]) -> Tokens:
        """The tokens with what attention and MLP add to them."""
        joint, mlp = on
        x = x + joint.gate * self.joint.added(attended)
        return x + mlp.gate * named(self.mlp(modulate(x, mlp.shift, mlp.scale)), OUT)


class ImageBlock(nnx.Module):
    """The part of a double layer that is for images, and in the expert for actions."""

    def __init__(self, sizes: LayerSizes, *, rngs: nnx.Rngs):
        # Of the joint attention, of the MLP, and of the attention without text.
        self.modulation = ModulationHead(sizes.dim, 3, bias=True, rngs=rngs)
        self.joint = NormedAttentionKernels(sizes, rngs=rngs)
        self.alone = NormedAttentionKernels(sizes, rngs=rngs)
        self.mlp = PlainMLP(sizes.dim, sizes.mlp_dim, gelu, rngs=rngs)

    def project(
        self, x: Tokens, on: tuple[Modulation, ...]
    ) -> tuple[tuple[Heads, Heads, Heads], tuple[Heads, Heads, Heads]]:
        """Queries, keys and values of the joint attention, and those of the one without text."""
        joint, _, alone = on
        x = constrain(x, "batch", "tokens", None)
        # The same norm in both; the compiler computes it once.
        return (
            self.joint.project(modulate(x, joint.shift, joint.scale)),
            self.alone.project(modulate(x, alone.shift, alone.scale)),
        )

    def finish(
        self, x: Tokens, jointly: Heads, by_itself: Heads, on: tuple[Modulation, ...]
    ) -> Tokens:
        """The tokens with what both attentions and the MLP add to them."""
        joint, mlp, alone = on
        x = x + joint.gate * self.joint.added(jointly)
        x = x + alone.gate * self.alone.added(by_itself)
        return x + mlp.gate * named(self.mlp(modulate(x, mlp.shift, mlp.scale)), OUT)


class DoubleLayer(nnx.Module):
    """Images and text, with kernels of their own."""

    def __init__(self, sizes: LayerSizes, *, rngs: nnx.Rngs):
        self.image = ImageBlock(sizes, rngs=rngs)
        self.text = TextBlock(sizes, rngs=rngs)

    def __call__(
        self, x: Tokens, vector: Vector, layout: AttentionLayout
    ) -> tuple[Tokens, DoubleContext]:
        on_image, on_text = self.image.modulation(vector), self.text.modulation(vector)
        n_image = x.shape[1] - layout.n_text
        image, text = x[:, :n_image], x[:, n_image:]
        joint, alone = self.image.project(image, on_image)
        without_text = layout._replace(
            n_text=0,
            context_length_b=None,
            rope=Rope(*(table[:, :n_image] for table in layout.rope)),
        )
        by_itself, of_images = attend_streams(*alone, without_text)
        both = zip(joint, self.text.project(text, on_text), strict=True)
        attended, context = attend_streams(*(jnp.concatenate(x, axis=1) for x in both), layout)
        image = self.image.finish(image, attended[:, :n_image], by_itself, on_image)
        text = self.text.finish(text, attended[:, n_image:], on_text)
        return jnp.concatenate([image, text], axis=1), DoubleContext(context, of_images)


class DoubleActionLayer(nnx.Module):
    """The counterpart of a double layer in the expert.

    Official experts have the text's part, too, as the first weights of their training had it. It
    never ran, and is kept so that a converted checkpoint can be written again as it was.
    """

    def __init__(self, sizes: LayerSizes, *, rngs: nnx.Rngs):
        self.image = ImageBlock(sizes, rngs=rngs)
        self.text = TextBlock(sizes, rngs=rngs)
        mark_unread(self.text)

    def __call__(
        self, x: Tokens, vector: Vector, context: DoubleContext, layout: ActionLayout
    ) -> Tokens:
        on = self.image.modulation(vector)
        joint, alone = self.image.project(x, on)
        by_itself = attend_action(*alone, context.image, layout._replace(context_length_b=None))
        # Last, as `ImageWAM.action_attention` shows the last attention of a layer.
        jointly = attend_action(*joint, context.joint, layout)
        return self.image.finish(x, jointly, by_itself, on)


class _SingleBlock(nnx.Module):
    """Attention and MLP of the same input, with one modulation."""

    def __init__(self, sizes: LayerSizes, *, rngs: nnx.Rngs):
        self.modulation = ModulationHead(sizes.dim, 1, bias=True, rngs=rngs)
        self.attention = NormedAttentionKernels(sizes, rngs=rngs)
        # The bias of what both add is that of the attention's `out`.
        self.mlp = PlainMLP(sizes.dim, sizes.mlp_dim, gelu, out_bias=False, rngs=rngs)

    def normed(self, x: Tokens, on: Modulation) -> Tokens:
        return modulate(constrain(x, "batch", "tokens", None), on.shift, on.scale)

    def finish(self, x: Tokens, z: Tokens, attended: Heads, on: Modulation) -> Tokens:
        return x + on.gate * (self.attention.added(attended) + named(self.mlp(z), OUT))


class SingleLayer(_SingleBlock):
    """All tokens with the same kernels."""

    def __call__(self, x: Tokens, vector: Vector, layout: AttentionLayout) -> tuple[Tokens, KV]:
        (on,) = self.modulation(vector)
        z = self.normed(x, on)
        attended, context = attend_streams(*self.attention.project(z), layout)
        return self.finish(x, z, attended, on), context


class SingleActionLayer(_SingleBlock):
    """The counterpart of a single layer in the expert."""

    def __call__(self, x: Tokens, vector: Vector, context: KV, layout: ActionLayout) -> Tokens:
        (on,) = self.modulation(vector)
        z = self.normed(x, on)
        attended = attend_action(*self.attention.project(z), context, layout)
        return self.finish(x, z, attended, on)
