"""The transformer of Ovis-U1, called Yak, and its action expert (docs/spec/imagewam_ovis_u1.md, 5
and 7).

The text, which has no positions, is refined together with a class token. What becomes of that is
added to the embedded time, so that it modulates all layers. What the methods do is written in
`backbones.base`, and what layers do in `ovis_u1_layers`.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.ovis_u1_layers import (
    DoubleActionLayer,
    DoubleLayer,
    LayerSizes,
    RefinerLayer,
    SingleActionLayer,
    SingleLayer,
    Vector,
)
from imagewam_jax.models.blocks import AttentionLayout, Tokens, image_tokens
from imagewam_jax.models.flow_matching import TIMESTEPS
from imagewam_jax.models.layers import (
    Axis,
    Linear,
    OutputHead,
    Rope,
    TimeEmbedding,
    grid_positions,
    recomputed,
    rope_tables,
    stacked,
)

# The first coordinate of each kind of token; a text token has 0 in all.
TARGET_TIME = 0
REFERENCE_TIME = 1  # reference image k, counted from 0, has 1 + k; officially there is one
ACTION_TIME = 2


@dataclass(frozen=True)
class OvisU1Config:
    """Sizes of a Yak transformer; the defaults are those of Ovis-U1-3B.

    `in_channels` are the numbers of one latent cell, 2 x 2 cells of the autoencoder.
    """

    in_channels: int = 16
    text_dim: int = 4096
    dim: int = 1536
    heads: int = 12
    double_layers: int = 6
    single_layers: int = 12
    mlp_ratio: float = 4.0
    refiner_layers: int = 2
    refiner_mlp_ratio: float = 4.0
    rope_axes: tuple[int, ...] = (16, 56, 56)  # time, row, column
    rope_theta: float = 10000.0

    def __post_init__(self):
        object.__setattr__(self, "rope_axes", tuple(self.rope_axes))
        if self.dim % (2 * self.heads):
            raise ValueError(
                f"dim {self.dim} is not a multiple of 2 x heads = {2 * self.heads}, the heads of "
                "the text's refiner"
            )
        if len(self.rope_axes) != 3 or sum(self.rope_axes) != self.head_dim:
            raise ValueError(
                f"rope_axes {self.rope_axes} must be three that add up to dim / heads = "
                f"{self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Double layers and single layers."""
        return self.double_layers, self.single_layers

    @property
    def extra_attentions(self) -> dict[str, int]:
        """The refiner's attention of the text, and those of images without text."""
        return {"text": self.refiner_layers, "image": self.double_layers}

    @property
    def mlp_dim(self) -> int:
        """The inner width of the layers' MLPs."""
        return _times(self.dim, self.mlp_ratio)

    @property
    def layer_sizes(self) -> LayerSizes:
        return LayerSizes(self.dim, self.heads, self.head_dim, self.mlp_dim)

    @property
    def refiner_sizes(self) -> LayerSizes:
        """The sizes of the refiner's layers, which have twice as many heads as the others, each
        half as wide."""
        inner = _times(self.dim, self.refiner_mlp_ratio)
        return LayerSizes(self.dim, 2 * self.heads, self.head_dim // 2, inner)


OVIS_U1 = OvisU1Config()


class TwoLayers(nnx.Module):
    """Two linear layers with SiLU between, of one vector for each sample. Like an embedded time,
    what they give broadcasts over tokens."""

    def __init__(self, inputs: Axis, dim: int, *, rngs: nnx.Rngs):
        inner = Axis("modulation", dim)
        self.wi = Linear(inputs, inner, bias=True, rngs=rngs)
        self.wo = Linear(inner, Axis("embed", dim), bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "b n"]) -> Vector:
        return self.wo(jax.nn.silu(self.wi(x)))[:, None]


class TextRefiner(nnx.Module):
    """Refines text, of any length, and sums it up in the class token."""

    def __init__(self, config: OvisU1Config, *, rngs: nnx.Rngs):
        text, dim = Axis("text", config.text_dim), config.dim
        self.text_in = Linear(text, Axis("embed", dim), bias=True, rngs=rngs)
        self.mean_in = TwoLayers(text, dim, rngs=rngs)
        self.class_token = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (dim,)), axes=("embed",)
        )
        self.layers = stacked(
            lambda rngs: RefinerLayer(config.refiner_sizes, rngs=rngs), config.refiner_layers, rngs
        )

    def __call__(
        self, text: Float[Array, "b t text_dim"], length_b: Int[Array, " b"] | None
    ) -> tuple[Tokens, Float[Array, "b d"]]:
        """The refined text, and the class token. `length_b` counts the valid text tokens, at least
        one of each sample; None: all are valid."""
        if length_b is None:
            length_b = jnp.full(text.shape[0], text.shape[1])
        valid = jnp.arange(text.shape[1]) < length_b[:, None]
        summed = jnp.where(valid[..., None], text.astype(jnp.float32), 0).sum(1)
        mean = summed / jnp.maximum(length_b, 1)[:, None]
        mean = self.mean_in(mean.astype(text.dtype))
        x = self.text_in(text)
        first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[2]))
        x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        x = recomputed(self.layers, x, lambda layer, x: layer(x, mean, length_b + 1))
        return x[:, 1:], x[:, 0]


class _Network(nnx.Module):
    """What the transformer and its expert have in common: embedded time, layers and head."""

    time_in: TimeEmbedding
    double_layers: nnx.Module
    single_layers: nnx.Module
    head: OutputHead

    @property
    def groups(self) -> tuple[nnx.Module, nnx.Module]:
        return self.double_layers, self.single_layers

    def condition(self, timestep_b: Float[Array, " b"]) -> Vector:
        return self.time_in(timestep_b / TIMESTEPS)

    def group_conditions(self, condition: Vector) -> tuple[Vector, Vector]:
        return condition, condition

    def predict(self, x: Tokens, condition: Vector) -> Float[Array, "b x c"]:
        return self.head(x, self.head.condition(condition))


class OvisU1(_Network):
    """Embeddings, the text's refiner, stacked layers and head."""

    ROWS: ClassVar = {
        "image_in": ("reference", "target"),
        "time_in": ("sample",),
        "class_in": ("sample",),
        "refiner.text_in": ("text",),
        "refiner.mean_in": ("sample",),
        "refiner.layers": ("text", "sample"),  # with the class token
        "refiner.layers.gates": ("sample",),
        "double_layers.image": ("reference", "target"),
        "double_layers.image.modulation": ("sample",),
        "double_layers.text": ("text",),
        "double_layers.text.modulation": ("sample",),
        "single_layers": ("text", "reference", "target"),
        "single_layers.modulation": ("sample",),
        "head.modulation": ("sample",),
        "head.linear": ("target",),
    }

    def __init__(self, config: OvisU1Config, *, rngs: nnx.Rngs):
        self.config = config
        dim, sizes, cell = config.dim, config.layer_sizes, Axis("channels", config.in_channels)
        self.image_in = Linear(cell, Axis("embed", dim), bias=True, rngs=rngs)
        self.time_in = TimeEmbedding(dim, bias=True, rngs=rngs)
        self.class_in = TwoLayers(Axis("embed", dim), dim, rngs=rngs)
        self.refiner = TextRefiner(config, rngs=rngs)
        self.double_layers = stacked(
            lambda rngs: DoubleLayer(sizes, rngs=rngs), config.double_layers, rngs
        )
        self.single_layers = stacked(
            lambda rngs: SingleLayer(sizes, rngs=rngs), config.single_layers, rngs
        )
        self.head = OutputHead(dim, cell, bias=True, rngs=rngs)

    def embed(
        self,
        target: Float[Array, "b h w c"] | None,
        references: Float[Array, "b k rows columns c"] | None,
        text: Float[Array, "b t text_dim"],
        condition: Vector,
        layout: AttentionLayout,
    ) -> tuple[Tokens, Vector]:
        """Tokens `[target | references | text]`, of which text is refined, and the vector of time
        and text that modulates all layers."""
        images = [image_tokens(image) for image in (target, references) if image is not None]
        length_b = layout.context_length_b
        if length_b is not None:
            length_b = length_b - sum(x.shape[1] for x in images) + layout.n_target
        text, class_token = self.refiner(text, length_b)
        tokens = jnp.concatenate([*map(self.image_in, images), text], axis=1)
        return tokens, condition + self.class_in(class_token)

    def make_expert(self, config: ActionExpertConfig, *, rngs: nnx.Rngs) -> "OvisU1Expert":
        return OvisU1Expert(config, self.config, rngs=rngs)

    def rope(
        self,
        text_index_bt: Int[Array, "#b t"],
        text_length_b: Int[Array, " b"],
        reference_grid: tuple[int, int],
        references: int,
        target_grid: tuple[int, int] | None,
        dtype: jnp.dtype,
    ) -> Rope:
        """Rotation tables, the same for all samples; computed in float64 as officially, whatever
        `dtype` is."""
        images = [] if target_grid is None else [self.target_positions(target_grid)]
        images += [self.reference_positions(reference_grid, k) for k in range(references)]
        text = np.zeros((text_index_bt.shape[1], 3), np.int64)
        return self.rope_at(np.concatenate([*images, text])[None])

    def action_rope(self, horizon: int, dtype: jnp.dtype) -> Rope:
        return self.rope_at(self.action_positions(horizon)[None])

    def rope_at(self, positions: Int[np.ndarray, "#b s 3"]) -> Rope:
        """Rotation tables of any positions."""
        return rope_tables(positions, self.config.rope_axes, self.config.rope_theta, np.float64)

    def target_positions(self, grid: tuple[int, int]) -> Int[np.ndarray, "tokens 3"]:
        """Positions of a target's tokens, row by row."""
        return grid_positions(grid, TARGET_TIME)

    def reference_positions(
        self, grid: tuple[int, int], index: int = 0
    ) -> Int[np.ndarray, "tokens 3"]:
        """Positions of the tokens of one reference image."""
        return grid_positions(grid, REFERENCE_TIME + index)

    def action_positions(self, horizon: int) -> Int[np.ndarray, "tokens 3"]:
        """Positions `(2, step, 0)` of an action chunk."""
        return grid_positions((horizon, 1), ACTION_TIME)


class OvisU1Expert(_Network):
    """Embedding, stacked layers and head of the action. It sees the text through attention alone,
    not in its modulation; officially it is as wide as the transformer."""

    ROWS: ClassVar = {
        "action_in": ("action",),
        "time_in": ("sample",),
        "double_layers": ("action",),
        "double_layers.image.modulation": ("sample",),
        "single_layers": ("action",),
        "single_layers.modulation": ("sample",),
        "head.modulation": ("sample",),
        "head.linear": ("action",),
    }

    def __init__(self, config: ActionExpertConfig, backbone: OvisU1Config, *, rngs: nnx.Rngs):
        self.config = config
        dim, action = config.dim, Axis("action", config.action_dim)
        sizes = LayerSizes(dim, backbone.heads, backbone.head_dim, config.mlp_dim)
        self.action_in = Linear(action, Axis("embed", dim), bias=True, rngs=rngs)
        self.time_in = TimeEmbedding(dim, bias=True, rngs=rngs)
        self.double_layers = stacked(
            lambda rngs: DoubleActionLayer(sizes, rngs=rngs), backbone.double_layers, rngs
        )
        self.single_layers = stacked(
            lambda rngs: SingleActionLayer(sizes, rngs=rngs), backbone.single_layers, rngs
        )
        self.head = OutputHead(dim, action, bias=True, rngs=rngs)


def _times(dim: int, ratio: float) -> int:
    """`dim * ratio`, rounded down as officially; not if a rounding error is missing."""
    return int(dim * ratio + 1e-6)
