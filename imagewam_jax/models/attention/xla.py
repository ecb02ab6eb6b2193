"""Attention in plain JAX: it runs everywhere, takes all shapes, and can say its weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imagewam_jax.models.attention.segments import KV
from imagewam_jax.models.remat import ATTENDED, named


def attend_xla(
    q_bsnh: Float[Array, "b s n h"],
    segments: Sequence[KV],
    length_b: Int[Array, " b"] | None = None,
) -> Float[Array, "b s n h"]:
    """Softmax attention of `q` over the keys of all segments, in the order given.

    Segments are not concatenated: a KV cache would be copied at every layer and step.
    `length_b` counts the valid keys of each sample; keys behind it are ignored, so padding
    must stand at the end of the last segment. Softmax is float32.
    """
    weights = attention_weights(q_bsnh, [s.k for s in segments], length_b)
    out, start = 0, 0
    for segment in segments:
        stop = start + segment.k.shape[1]
        part = weights[..., start:stop].astype(segment.v.dtype)
        out += jnp.einsum("bnst,btnh->bsnh", part, segment.v, preferred_element_type=jnp.float32)
        start = stop
    return named(out.astype(q_bsnh.dtype), ATTENDED)


def attention_weights(
    q_bsnh: Float[Array, "b s n h"],
    keys: Sequence[Float[Array, "b _ n h"]],
    length_b: Int[Array, " b"] | None = None,
) -> Float[Array, "b n s t"]:
    """The float32 softmax weights that `attend_xla` uses, over all segments' keys."""
    scale = q_bsnh.shape[-1] ** -0.5
    logits = [
        jnp.einsum("bsnh,btnh->bnst", q_bsnh, k, preferred_element_type=jnp.float32) for k in keys
    ]
    logits = scale * jnp.concatenate(logits, -1)
    if length_b is not None:
        valid = jnp.arange(logits.shape[-1]) < length_b[:, None]
        logits = jnp.where(valid[:, None, None], logits, -jnp.inf)
    return jax.nn.softmax(logits, axis=-1)
