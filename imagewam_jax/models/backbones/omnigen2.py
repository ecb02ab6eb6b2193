"""The OmniGen2 transformer, and its action expert (docs/spec/imagewam_omnigen2.md, 5 and 7).

Before the layers that all tokens share, text, each reference and the target are refined by layers
of their own. Every layer makes its modulation itself, from the embedded time, and has fewer heads
of keys and values than of queries. What the methods do is written in `backbones.base`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.attention import KV
from imagewam_jax.models.blocks import (
    ActionLayout,
    AttentionLayout,
    Heads,
    KVHeads,
    Tokens,
    attend_action,
    attend_streams,
    image_tokens,
    project_heads,
)
from imagewam_jax.models.layers import (
    Axis,
    GatedMLP,
    Linear,
    RMSNorm,
    Rope,
    TimeEmbedding,
    grid_positions,
    layer_norm,
    merge_heads,
    recomputed,
    rope_tables,
    stacked,
)
from imagewam_jax.models.partitioning import constrain
from imagewam_jax.models.remat import OUT, named

# The largest width of the time embedding, which is otherwise that of the model.
MOST_TIME_CHANNELS = 1024


@dataclass(frozen=True)
class OmniGen2Config:
    """Sizes of an OmniGen2 transformer; the defaults are those of the released one.

    `in_channels` are the numbers of one latent cell, `patch` x `patch` cells of the autoencoder.
    The networks multiply a timestep by their `timestep_scale` before they embed it. What begins
    with `action` belongs to the expert.
    """

    in_channels: int = 64
    patch: int = 2
    text_dim: int = 2048
    dim: int = 2520
    heads: int = 21
    kv_heads: int = 7
    layers: int = 32
    refiner_layers: int = 2  # of text, of each reference and of the target
    max_references: int = 5  # references that have a learned index embedding
    mlp_dim: int = 10240
    rope_axes: tuple[int, ...] = (40, 40, 40)  # text or image, row, column
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    timestep_scale: float = 1000.0
    action_timestep_scale: float = 1.0
    action_rope_theta: float = 10000.0

    def __post_init__(self):
        object.__setattr__(self, "rope_axes", tuple(self.rope_axes))
        for name, size, divisor in (
            ("dim", self.dim, self.heads),
            ("heads", self.heads, self.kv_heads),
            ("in_channels", self.in_channels, self.patch**2),
        ):
            if size % divisor:
                raise ValueError(f"{name} {size} is not a multiple of {divisor}")
        if len(self.rope_axes) != 3 or sum(self.rope_axes) != self.head_dim:
            raise ValueError(
                f"rope_axes {self.rope_axes} must be three that add up to dim / heads = "
                f"{self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def group_sizes(self) -> tuple[int]:
        """All layers are of one kind."""
        return (self.layers,)

    @property
    def extra_attentions(self) -> dict[str, int]:
        return dict.fromkeys(("text", "reference", "target"), self.refiner_layers)


OMNIGEN2 = OmniGen2Config()


class OmniGen2Condition(NamedTuple):
    """Everything that depends on time.

    time: the embedded time, of which each layer makes its modulation. head: the head's scale. Both
    broadcast over tokens, or have a row for each of them.
    """

    time: Float[Array, "b #s time"]
    head: Float[Array, "b #s d"]


class OmniGen2Modulation(NamedTuple):
    """Scales of the inputs and gates of the outputs of a layer's two branches."""

    attention_scale: Float[Array, "b #s d"]
    attention_gate: Float[Array, "b #s d"]
    mlp_scale: Float[Array, "b #s d"]
    mlp_gate: Float[Array, "b #s d"]


class OmniGen2TimeEmbedding(TimeEmbedding):
    """Sinusoids of `scale` times a timestep, then a two-layer MLP with biases."""

    def __init__(self, dim: int, scale: float, *, rngs: nnx.Rngs):
        super().__init__(dim, bias=True, rngs=rngs)
        self.scale = scale

    def __call__(self, timestep_b: Float[Array, " b"]) -> Float[Array, "b 1 d"]:
        # Float32 in the official order: with a scale of 1000 the angles are up to a million.
        half = self.width // 2
        exponents = np.float32(-np.log(10000)) * np.arange(half, dtype=np.float32) / half
        frequencies = np.exp(exponents.astype(np.float64)).astype(np.float32)
        angles = timestep_b.astype(jnp.float32)[:, None] * frequencies * np.float32(self.scale)
        sinusoids = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        return self.mlp(sinusoids.astype(timestep_b.dtype))


class OmniGen2Block(nnx.Module):
    """Attention, then MLP, each between a norm of its input and one of its output.

    A block of the context's refiner has no modulation (`has_time` is False).
    """

    def __init__(
        self,
        dim: int,
        mlp_dim: int,
        config: OmniGen2Config,
        *,
        has_time: bool = True,
        rngs: nnx.Rngs,
    ):
        embed, eps = Axis("embed", dim), config.norm_eps
        width = Axis("heads", config.heads * config.head_dim)
        kv_width = Axis("heads", config.kv_heads * config.head_dim)
        self.head_dim = config.head_dim
        # Scale and gate of the attention, then those of the MLP.
        time, out = Axis("embed", time_channels(dim)), Axis("modulation", 4 * dim)
        self.modulation = Linear(time, out, bias=True, rngs=rngs) if has_time else None
        self.attention_norm = RMSNorm(dim, axis="embed", eps=eps)
        self.q = Linear(embed, width, rngs=rngs)
        self.k = Linear(embed, kv_width, rngs=rngs)
        self.v = Linear(embed, kv_width, rngs=rngs)
        self.q_norm = RMSNorm(config.head_dim, eps=eps)
        self.k_norm = RMSNorm(config.head_dim, eps=eps)
        self.out = Linear(width, embed, rngs=rngs)
        self.attended_norm = RMSNorm(dim, axis="embed", eps=eps)
        self.mlp_norm = RMSNorm(dim, axis="embed", eps=eps)
        self.mlp = GatedMLP(dim, mlp_dim, rngs=rngs)
        self.mlp_out_norm = RMSNorm(dim, axis="embed", eps=eps)

    def modulate(self, time: Float[Array, "b s time"] | None) -> OmniGen2Modulation | None:
        """The modulation at an embedded time; None for a block that has none."""
        if self.modulation is None:
            return None
        parts = jnp.split(self.modulation(jax.nn.silu(time)), 4, axis=-1)
        return OmniGen2Modulation(*parts)

    def project(self, x: Tokens, on: OmniGen2Modulation | None) -> tuple[Heads, KVHeads, KVHeads]:
        """Normed queries and keys, and values; not yet rotated."""
        z = self.attention_norm(constrain(x, "batch", "tokens", None))
        z = z if on is None else z * (1 + on.attention_scale)
        q, k, v = (project_heads(linear, z, self.head_dim) for linear in (self.q, self.k, self.v))
        return self.q_norm(q), self.k_norm(k), v

    def finish(self, x: Tokens, attended: Heads, on: OmniGen2Modulation | None) -> Tokens:
        """The tokens with what both branches add to them."""
        added = self.attended_norm(named(self.out(merge_heads(attended)), OUT))
        x = x + (added if on is None else jnp.tanh(on.attention_gate) * added)
        z = self.mlp_norm(x)
        z = z if on is None else z * (1 + on.mlp_scale)
        added = self.mlp_out_norm(named(self.mlp(z), OUT))
        return x + (added if on is None else jnp.tanh(on.mlp_gate) * added)


class OmniGen2Layer(OmniGen2Block):
    """A layer of the transformer or of one of its refiners."""

    def __call__(
        self, x: Tokens, condition: OmniGen2Condition, layout: AttentionLayout
    ) -> tuple[Tokens, KV]:
        on = self.modulate(condition.time)
        attended, context = attend_streams(*self.project(x, on), layout)
        return self.finish(x, attended, on), context


class OmniGen2ActionLayer(OmniGen2Block):
    """The counterpart of a layer in the expert."""

    def __call__(
        self, x: Tokens, condition: OmniGen2Condition, context: KV, layout: ActionLayout
    ) -> Tokens:
        on = self.modulate(condition.time)
        attended = attend_action(*self.project(x, on), context, layout)
        return self.finish(x, attended, on)


class OmniGen2Head(nnx.Module):
    """The last, time-modulated projection of tokens to their velocity."""

    def __init__(self, dim: int, out: Axis, *, rngs: nnx.Rngs):
        time = Axis("embed", time_channels(dim))
        self.modulation = Linear(time, Axis("modulation", dim), bias=True, rngs=rngs)
        self.linear = Linear(Axis("embed", dim), out, bias=True, rngs=rngs)

    def condition(self, time: Float[Array, "b s time"]) -> Float[Array, "b s d"]:
        """The scale of the normed tokens, from the embedded time; not part of `__call__`, so that
        many times share one matrix product."""
        return self.modulation(jax.nn.silu(time))

    def __call__(self, x: Tokens, scale: Float[Array, "#b #s d"]) -> Float[Array, "b s out"]:
        return self.linear(layer_norm(x) * (1 + scale))


class _Network(nnx.Module):
    """What the transformer and its expert have in common: embedded time, layers and head."""

    time_in: OmniGen2TimeEmbedding
    layers: nnx.Module
    head: OmniGen2Head

    @property
    def groups(self) -> tuple[nnx.Module]:
        return (self.layers,)

    def condition(self, timestep_b: Float[Array, " b"]) -> OmniGen2Condition:
        time = self.time_in(timestep_b)
        return OmniGen2Condition(time, self.head.condition(time))

    def group_conditions(self, condition: OmniGen2Condition) -> tuple[OmniGen2Condition]:
        return (condition,)

    def predict(self, x: Tokens, condition: OmniGen2Condition) -> Float[Array, "b x c"]:
        return self.head(x, condition.head)


class OmniGen2(_Network):
    """Embeddings, refiners, stacked layers and head."""

    ROWS: ClassVar = {
        "image_in": ("target",),
        "reference_in": ("reference",),
        "reference_index": (),  # a table, of which rows are taken
        "text_in": ("text",),
        "time_in": ("sample",),
        "text_refiner": ("text",),
        "reference_refiner": ("reference",),
        "reference_refiner.modulation": ("sample",),
        "target_refiner": ("target",),
        "target_refiner.modulation": ("sample",),
        "layers": ("text", "reference", "target"),
        "layers.modulation": ("sample",),
        "head.modulation": ("sample",),
        "head.linear": ("target",),
    }

    def __init__(self, config: OmniGen2Config, *, rngs: nnx.Rngs):
        self.config = config
        embed, cell = Axis("embed", config.dim), Axis("channels", config.in_channels)
        self.image_in = Linear(cell, embed, bias=True, rngs=rngs)
        self.reference_in = Linear(cell, embed, bias=True, rngs=rngs)
        index = 0.02 * jax.random.normal(rngs.params(), (config.max_references, config.dim))
        self.reference_index = nnx.Param(index, axes=("reference", "embed"))
        self.text_norm = RMSNorm(config.text_dim, axis="text", eps=config.norm_eps)
        self.text_in = Linear(Axis("text", config.text_dim), embed, bias=True, rngs=rngs)
        self.time_in = OmniGen2TimeEmbedding(
            time_channels(config.dim), config.timestep_scale, rngs=rngs
        )

        def layers(count: int, has_time: bool = True) -> nnx.Module:
            return stacked(
                lambda rngs: OmniGen2Layer(
                    config.dim, config.mlp_dim, config, has_time=has_time, rngs=rngs
                ),
                count,
                rngs,
            )

        self.text_refiner = layers(config.refiner_layers, has_time=False)
        self.reference_refiner = layers(config.refiner_layers)
        self.target_refiner = layers(config.refiner_layers)
        self.layers = layers(config.layers)
        self.head = OmniGen2Head(config.dim, cell, rngs=rngs)

    def embed(
        self,
        target: Float[Array, "b h w c"] | None,
        references: Float[Array, "b k rows columns c"] | None,
        text: Float[Array, "b t text_dim"],
        condition: OmniGen2Condition,
        layout: AttentionLayout,
    ) -> tuple[Float[Array, "b s d"], OmniGen2Condition]:
        """Tokens `[target | references | text]`, each part refined by itself, and the same
        condition."""
        parts = []  # tokens, the layers that refine them, and how many are valid
        if target is not None:
            parts.append((self.image_in(image_tokens(target)), self.target_refiner, None))
        count = 0 if references is None else references.shape[1]
        for k in range(count):
            x = self.reference_in(image_tokens(references[:, k]))
            index = self.reference_index[...][k].astype(x.dtype)
            parts.append((x + index, self.reference_refiner, None))
        length_b = layout.context_length_b
        if length_b is not None and references is not None:
            length_b = length_b - count * references.shape[2] * references.shape[3]
        parts.append((self.text_in(self.text_norm(text)), self.text_refiner, length_b))
        refined, start = [], 0
        for x, layers, valid_b in parts:
            stop = start + x.shape[1]
            rope = Rope(*(table[:, start:stop] for table in layout.rope))
            alone = AttentionLayout(0, 0, valid_b, rope, layout.attend)
            refined.append(
                recomputed(layers, x, lambda layer, x, on=alone: layer(x, condition, on)[0])
            )
            start = stop
        return jnp.concatenate(refined, axis=1), condition

    def make_expert(self, config: ActionExpertConfig, *, rngs: nnx.Rngs) -> "OmniGen2Expert":
        return OmniGen2Expert(config, self.config, rngs=rngs)

    def rope(
        self,
        text_index_bt: Int[Array, "#b t"],
        text_length_b: Int[Array, " b"],
        reference_grid: tuple[int, int],
        references: int,
        target_grid: tuple[int, int] | None,
        dtype: jnp.dtype,
    ) -> Rope:
        """Rotation tables, computed in float64 as officially, whatever `dtype` is.

        A text token has its number on all three axes. A cell of an image has (n, row, column): n is
        the number of valid text tokens for the first reference, and for each further image that of
        the one before plus the larger of its rows and columns.
        """
        extent = max(reference_grid)
        images = [] if target_grid is None else [grid_positions(target_grid, references * extent)]
        images += [grid_positions(reference_grid, k * extent) for k in range(references)]
        behind_text = text_length_b[:, None, None] * np.array([1, 0, 0])
        text = jnp.broadcast_to(
            text_index_bt[..., None], (len(text_length_b), text_index_bt.shape[1], 3)
        )
        positions = jnp.concatenate([np.concatenate(images)[None] + behind_text, text], axis=1)
        return rope_tables(positions, self.config.rope_axes, self.config.rope_theta, np.float64)

    def action_rope(self, horizon: int, dtype: jnp.dtype) -> Rope:
        """One axis, the number of the step, which turns all channels of a head."""
        steps = np.arange(horizon)[None, :, None]
        return rope_tables(
            steps, (self.config.head_dim,), self.config.action_rope_theta, np.float64
        )


class OmniGen2Expert(_Network):
    """Embedding, stacked layers and head of the action."""

    ROWS: ClassVar = {
        "action_in": ("action",),
        "time_in": ("sample",),
        "layers": ("action",),
        "layers.modulation": ("sample",),
        "head.modulation": ("sample",),
        "head.linear": ("action",),
    }

    def __init__(self, config: ActionExpertConfig, backbone: OmniGen2Config, *, rngs: nnx.Rngs):
        self.config = config
        action = Axis("action", config.action_dim)
        self.action_in = Linear(action, Axis("embed", config.dim), bias=True, rngs=rngs)
        self.time_in = OmniGen2TimeEmbedding(
            time_channels(config.dim), backbone.action_timestep_scale, rngs=rngs
        )
        self.layers = stacked(
            lambda rngs: OmniGen2ActionLayer(config.dim, config.mlp_dim, backbone, rngs=rngs),
            backbone.layers,
            rngs,
        )
        self.head = OmniGen2Head(config.dim, action, rngs=rngs)


def time_channels(dim: int) -> int:
    """Channels of the embedded time of a network that is `dim` wide."""
    return min(dim, MOST_TIME_CHANNELS)
