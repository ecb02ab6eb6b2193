"""The Qwen3 decoder as a text encoder, and a small one over bytes.

See docs/spec/imagewam_flux2.md, 3.2.

Features are the residual stream after some of its layers, side by side; the layers behind
the last of these, the final norm and the output head are not part of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int

from imagewam_jax.models.layers import (
    Axis,
    GatedMLP,
    Linear,
    RMSNorm,
    merge_heads,
    split_heads,
    stacked,
)
from imagewam_jax.models.text_encoders.base import TextEncoder, Tokens, pad_tokens


@dataclass(frozen=True)
class Qwen3Config:
    """Sizes of a Qwen3 trunk; the defaults are those of Qwen3-4B.

    `feature_layers` are the numbers of layers after which the residual stream is taken, in
    ascending order; the trunk ends with the last of them.
    """

    vocab_size: int = 151936
    dim: int = 2560
    mlp_dim: int = 9728
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    feature_layers: tuple[int, ...] = (9, 18, 27)
    rope_theta: float = 1e6

    def __post_init__(self):
        object.__setattr__(self, "feature_layers", tuple(self.feature_layers))
        layers = self.feature_layers
        if not layers or layers[0] < 1 or list(layers) != sorted(set(layers)):
            raise ValueError(f"feature_layers {layers} must be ascending numbers from 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")

    @property
    def layers(self) -> int:
        return self.feature_layers[-1]

    @property
    def feature_dim(self) -> int:
        return len(self.feature_layers) * self.dim


QWEN3_4B = Qwen3Config()
QWEN3_8B = Qwen3Config(dim=4096, mlp_dim=12288)

# Random weights are of use, too: see `byte_qwen3`. With attention as large as its input and
# embeddings smaller than that, context shows in the residual stream from the first layers on.
_attention_init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
_embedding_init = nnx.initializers.normal(0.5)


class Qwen3Layer(nnx.Module):
    """Causal grouped-query attention, then a gated MLP."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        embed = Axis("embed", config.dim)
        heads = Axis("heads", config.heads * config.head_dim)
        kv_heads = Axis("kv_heads", config.kv_heads * config.head_dim)
        self.head_dim = config.head_dim

        def linear(inputs: Axis, outputs: Axis) -> Linear:
            return Linear(inputs, outputs, init=_attention_init, rngs=rngs)

        self.attention_norm = RMSNorm(config.dim, axis="embed")
        self.q, self.k, self.v = (linear(embed, out) for out in (heads, kv_heads, kv_heads))
        self.q_norm, self.k_norm = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        self.out = linear(heads, embed)
        self.mlp_norm = RMSNorm(config.dim, axis="embed")
        self.mlp = GatedMLP(config.dim, config.mlp_dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b s d"],
        cos: Float[Array, "s 1 half"],
        sin: Float[Array, "s 1 half"],
        length_b: Int[Array, " b"],
    ) -> Float[Array, "b s d"]:
        """The residual stream after this layer."""
        z = self.attention_norm(x)
        q, k, v = (split_heads(linear(z), self.head_dim) for linear in (self.q, self.k, self.v))
        attended = jax.nn.dot_product_attention(
            _rotate(self.q_norm(q), cos, sin),
            _rotate(self.k_norm(k), cos, sin),
            v,
            is_causal=True,
            key_value_seq_lengths=length_b,
        )
        x = x + self.out(merge_heads(attended))
        return x + self.mlp(self.mlp_norm(x))


class Qwen3(nnx.Module):
    """Embeddings and stacked layers up to the last that features are taken after."""

    def __init__(self, config: Qwen3Config, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.vocab_size, config.dim)
        self.embedding = nnx.Param(_embedding_init(rngs.params(), shape), axes=("vocab", "embed"))
        self.layers = stacked(lambda rngs: Qwen3Layer(config, rngs=rngs), config.layers, rngs)

    def __call__(
        self, ids_bs: Int[Array, "b s"], length_b: Int[Array, " b"]
    ) -> Float[Array, "b s features"]:
        """Features of right-padded token ids, layer by layer: `[after 9 | after 18 | after 27]`.

        `length_b` counts the valid tokens of each sample. Features at padding are finite and
        mean nothing.
        """
        config = self.config
        x = jnp.take(self.embedding[...], ids_bs, axis=0)
        cos, sin = _rope_tables(ids_bs.shape[1], config.head_dim, config.rope_theta)
        cos, sin = cos.astype(x.dtype), sin.astype(x.dtype)

        # Where each layer's output is kept; one past the end, where the write is dropped, for
        # the layers between. So no more than the features themselves are ever held.
        n_kept = len(config.feature_layers)
        slots = np.full(config.layers, n_kept)
        slots[np.array(config.feature_layers) - 1] = np.arange(n_kept)

        def step(state, layer_and_slot):
            x, kept = state
            layer, slot = layer_and_slot
            x = layer(x, cos, sin, length_b)
            return (x, kept.at[slot].set(x, mode="drop")), None

        kept = jnp.zeros((n_kept, *x.shape), x.dtype)
        (_, kept), _ = jax.lax.scan(step, (x, kept), (self.layers, slots))
        return rearrange(kept, "n b s d -> b s (n d)")


def _rope_tables(
    length: int, head_dim: int, theta: float
) -> tuple[Float[Array, "s 1 half"], Float[Array, "s 1 half"]]:
    """Cosines and sines of positions 0, 1, ...; float32, and the same bits on every device."""
    frequencies = 1 / theta ** (np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
    angles = np.arange(length, dtype=np.float32)[:, None, None] * frequencies
    return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))


def _rotate(
    x: Float[Array, "b s n h"], cos: Float[Array, "s 1 half"], sin: Float[Array, "s 1 half"]
) -> Float[Array, "b s n h"]:
    """Turns channel i against channel i + h/2, in the dtype of `x` (`layers.rotate`: float32)."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


BEGIN, END, PAD = 256, 257, 258  # behind the 256 bytes
VOCAB_SIZE = 259


def tokenize_bytes(prompts: Sequence[str], max_length: int) -> Tokens:
    """`BEGIN`, the bytes, `END`, then `PAD` up to `max_length`: see `pad_tokens`."""
    ids = [[BEGIN, *prompt.encode(), END] for prompt in prompts]
    return pad_tokens(prompts, ids, max_length, PAD)


BYTE_QWEN3 = Qwen3Config(
    vocab_size=VOCAB_SIZE,
    dim=64,
    mlp_dim=192,
    heads=4,
    kv_heads=2,
    head_dim=16,
    feature_layers=(2, 4, 6),
)


def byte_qwen3(seed: int = 0, config: Qwen3Config = BYTE_QWEN3) -> TextEncoder:
    """A small Qwen3 over UTF-8 bytes, whose weights are random and stay as they are.

    It needs no download. Random features tell prompts apart, which is all that a policy for a
    handful of instructions needs; they know nothing of meaning.

    ValueError: `config` has another vocabulary than the tokenizer.
    """
    if config.vocab_size != VOCAB_SIZE:
        raise ValueError(
            f"vocab_size {config.vocab_size} differs from that of the byte tokenizer, {VOCAB_SIZE}"
        )
    return TextEncoder(
        identity=f"byte_qwen3(seed={seed}, {config})",
        feature_dim=config.feature_dim,
        tokenize=tokenize_bytes,
        load=lambda: Qwen3(config, rngs=nnx.Rngs(seed)),
    )
