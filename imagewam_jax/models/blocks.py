"""Transformer blocks as two halves, *project* and *finish*, around an attention.

The halves are apart so that each stream of tokens can attend to keys of other streams. What a
stream may see is written here once, for every mode of the system:

    context  -> context
    target   -> target, context
    action   -> action, context

A backbone holds its tokens as `[target | reference | text]`, so that each of these key sets
is a slice, and the padding of the text is at its end.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from imagewam_jax.models.attention import KV, Attend
from imagewam_jax.models.layers import (
    Axis,
    GatedMLP,
    Linear,
    Modulation,
    RMSNorm,
    Rope,
    merge_heads,
    modulate,
    rotate,
    split_heads,
)
from imagewam_jax.models.partitioning import constrain
from imagewam_jax.models.remat import OUT, QKV, named

Heads = Float[Array, "b s n h"]
KVHeads = Float[Array, "b s m h"]  # those of keys and values, which can be fewer
Tokens = Float[Array, "b s d"]


def image_tokens(image: Float[Array, "b *images h w c"]) -> Float[Array, "b s c"]:
    """The cells of an image, or of several one after the other, as tokens, row by row."""
    return image.reshape(image.shape[0], -1, image.shape[-1])


def project_heads(linear: Linear, z: Tokens, head_dim: int) -> Heads:
    """Projects tokens to queries, keys or values, split into heads."""
    y = linear(z)
    if z.shape[0] * z.shape[1] < z.shape[2]:
        # A TPU's compiler likes to divide the kernel into heads instead, and copies it for that. A
        # kernel of more rows than there are tokens costs more to copy than it gains.
        y = jax.lax.optimization_barrier(y)
    return split_heads(named(y, QKV), head_dim)


class _Flux2Block(nnx.Module):
    """The parameters that both kinds of FLUX.2 block have.

    A block is its parameters and two halves of a layer, `project` and `finish`; who calls them
    attends in between.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, mlp_dim: int, *, rngs: nnx.Rngs):
        embed, width = Axis("embed", dim), Axis("heads", heads * head_dim)
        self.head_dim = head_dim
        self.q = Linear(embed, width, rngs=rngs)
        self.k = Linear(embed, width, rngs=rngs)
        self.v = Linear(embed, width, rngs=rngs)
        self.q_norm = RMSNorm(head_dim)
        self.k_norm = RMSNorm(head_dim)
        self.out = Linear(width, embed, rngs=rngs)
        self.mlp = GatedMLP(dim, mlp_dim, rngs=rngs)

    def project(self, x: Tokens, condition: tuple[Modulation, ...]) -> tuple[Heads, Heads, Heads]:
        """Normed queries and keys, and values; not yet rotated."""
        x = constrain(x, "batch", "tokens", None)
        z = modulate(x, condition[0].shift, condition[0].scale)
        q, k, v = (project_heads(linear, z, self.head_dim) for linear in (self.q, self.k, self.v))
        return self.q_norm(q), self.k_norm(k), v


class SequentialBlock(_Flux2Block):
    """Attention, then MLP, each with its own modulation (docs/spec/imagewam_flux2.md, 1.8)."""

    def finish(self, x: Tokens, attended: Heads, condition: tuple[Modulation, Modulation]):
        attention, mlp = condition
        x = x + attention.gate * named(self.out(merge_heads(attended)), OUT)
        return x + mlp.gate * named(self.mlp(modulate(x, mlp.shift, mlp.scale)), OUT)


class ParallelBlock(_Flux2Block):
    """Attention and MLP of the same input, one modulation (docs/spec/imagewam_flux2.md, 1.9)."""

    def finish(self, x: Tokens, attended: Heads, condition: tuple[Modulation]):
        (both,) = condition
        # The same modulated input as in `project`; the compiler computes it once.
        z = modulate(x, both.shift, both.scale)
        return x + both.gate * named(self.out(merge_heads(attended)) + self.mlp(z), OUT)


class AttentionLayout(NamedTuple):
    """What the layers of a backbone share besides their tokens, `[target | reference | text]`."""

    n_target: int
    n_text: int
    context_length_b: Int[Array, " b"] | None  # valid context tokens; None: all of them
    rope: Rope
    attend: Attend


def attend_streams(q: Heads, k: KVHeads, v: KVHeads, layout: AttentionLayout) -> tuple[Heads, KV]:
    """Rotates and attends: the target to everything, the context to itself.

    Keys and values can have fewer heads than queries: see `_attend`. Returns the attended values
    and the context's rotated keys and values.
    """
    q, k = rotate(q, layout.rope), rotate(k, layout.rope)
    # Queries stay where their tokens are; every device sees all keys.
    q = constrain(q, "batch", "tokens", "heads", None)
    k, v = (constrain(x, "batch", None, "heads", None) for x in (k, v))
    n, length_b = layout.n_target, layout.context_length_b
    context = KV(k[:, n:], v[:, n:])
    outputs = []
    if n > 0:
        length_all_b = None if length_b is None else n + length_b
        outputs.append(_attend(layout.attend, q[:, :n], [KV(k, v)], length_all_b))
    if n < q.shape[1]:
        outputs.append(_attend(layout.attend, q[:, n:], [context], length_b))
    return jnp.concatenate(outputs, axis=1), context


class ActionLayout(NamedTuple):
    """What the layers of an action expert share besides their tokens."""

    context_length_b: Int[Array, " b"] | None  # valid context tokens; None: all of them
    rope: Rope
    attend: Attend


def attend_action(
    q: Heads, k: KVHeads, v: KVHeads, context: KV, layout: ActionLayout
) -> Float[Array, "b s n h"]:
    """Rotates and attends: an action chunk to itself and to the context."""
    rope, length_b = layout.rope, layout.context_length_b
    k, v = (constrain(x, "batch", None, "heads", None) for x in (rotate(k, rope), v))
    length_all_b = None if length_b is None else q.shape[1] + length_b
    return _attend(layout.attend, rotate(q, rope), [KV(k, v), context], length_all_b)


def _attend(
    attend: Attend, q: Heads, segments: Sequence[KV], length_b: Int[Array, " b"] | None
) -> Heads:
    """Attention in which each head of keys and values can be for a group of heads of queries.

    Heads of one group become queries of one head: who may look at whom never depends on the query,
    so that a kernel need not know of groups.
    """
    group = q.shape[2] // segments[0].k.shape[2]
    if group == 1:
        return attend(q, segments, length_b)
    queries = rearrange(q, "b s (n group) h -> b (s group) n h", group=group)
    attended = attend(queries, segments, length_b)
    return rearrange(attended, "b (s group) n h -> b s (n group) h", group=group)
