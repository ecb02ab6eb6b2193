"""The FLUX.2 [klein] transformer (docs/spec/imagewam_flux2.md, 1).

The order of its tokens, `[target | reference | text]`, is not the official one; it is immaterial to
attention and makes every key set a slice (see `models.blocks`). Image tokens share their weights;
in the double layers text has weights of its own. What the methods do is written in
`backbones.base`.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from imagewam_jax.models.action_expert import ActionExpert, ActionExpertConfig
from imagewam_jax.models.attention import KV
from imagewam_jax.models.blocks import (
    AttentionLayout,
    ParallelBlock,
    SequentialBlock,
    attend_streams,
    image_tokens,
)
from imagewam_jax.models.flow_matching import TIMESTEPS
from imagewam_jax.models.layers import (
    Axis,
    Linear,
    Modulation,
    ModulationHead,
    OutputHead,
    Rope,
    ShiftScale,
    TimeEmbedding,
    grid_positions,
    rope_tables,
    stacked,
)


@dataclass(frozen=True)
class Flux2Config:
    """Sizes of a FLUX.2 transformer; the defaults are those of klein 4B."""

    in_channels: int = 128
    text_dim: int = 7680
    dim: int = 3072
    heads: int = 24
    double_layers: int = 5
    single_layers: int = 20
    mlp_ratio: float = 3.0
    rope_axes: tuple[int, ...] = (32, 32, 32, 32)  # time, row, column, text
    rope_theta: float = 2000.0

    def __post_init__(self):
        object.__setattr__(self, "rope_axes", tuple(self.rope_axes))
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
        if sum(self.rope_axes) != self.head_dim:
            raise ValueError(
                f"rope_axes {self.rope_axes} must add up to dim / heads = {self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def rope_periods(self) -> tuple[float, ...]:
        """The positions on each axis after which its slowest rotation has come round."""
        return tuple(2 * np.pi * self.rope_theta ** (1 - 2 / n) for n in self.rope_axes)

    @property
    def mlp_dim(self) -> int:
        """`dim * mlp_ratio`, rounded down as officially; not if a rounding error is missing."""
        return int(self.dim * self.mlp_ratio + 1e-6)

    @property
    def kv_heads(self) -> int:
        return self.heads

    @property
    def extra_attentions(self) -> dict[str, int]:
        return {}

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Double layers and single layers."""
        return self.double_layers, self.single_layers


KLEIN_4B = Flux2Config()
KLEIN_9B = Flux2Config(text_dim=12288, dim=4096, heads=32, double_layers=8, single_layers=24)

# The first coordinate of each kind of token.
TARGET_TIME = 0
REFERENCE_TIME = 10  # reference image k, counted from 0, has 10 + 10 k
ACTION_TIME = 2


class Flux2Condition(NamedTuple):
    """Everything that depends on time: modulations per layer group and of the head."""

    double: tuple[tuple[Modulation, ...], tuple[Modulation, ...]]  # image, text
    single: tuple[Modulation, ...]
    head: ShiftScale


class DoubleLayer(nnx.Module):
    """Image and text tokens with separate weights and one attention."""

    def __init__(self, config: Flux2Config, *, rngs: nnx.Rngs):
        sizes = (config.dim, config.heads, config.head_dim, config.mlp_dim)
        self.image = SequentialBlock(*sizes, rngs=rngs)
        self.text = SequentialBlock(*sizes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b s d"], condition, layout: AttentionLayout
    ) -> tuple[Float[Array, "b s d"], KV]:
        """The tokens after this layer, and the keys and values of the context."""
        on_image, on_text = condition
        n_image = x.shape[1] - layout.n_text
        image, text = x[:, :n_image], x[:, n_image:]
        qkv = zip(
            self.image.project(image, on_image), self.text.project(text, on_text), strict=True
        )
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in qkv)
        attended, context = attend_streams(q, k, v, layout)
        image = self.image.finish(image, attended[:, :n_image], on_image)
        text = self.text.finish(text, attended[:, n_image:], on_text)
        return jnp.concatenate([image, text], axis=1), context


class SingleLayer(nnx.Module):
    """All tokens with the same weights."""

    def __init__(self, config: Flux2Config, *, rngs: nnx.Rngs):
        sizes = (config.dim, config.heads, config.head_dim, config.mlp_dim)
        self.block = ParallelBlock(*sizes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b s d"], condition, layout: AttentionLayout
    ) -> tuple[Float[Array, "b s d"], KV]:
        attended, context = attend_streams(*self.block.project(x, condition), layout)
        return self.block.finish(x, attended, condition), context


class Flux2(nnx.Module):
    """Embeddings, stacked layers and head."""

    ROWS: ClassVar = {
        "image_in": ("reference", "target"),
        "text_in": ("text",),
        "time_in": ("sample",),
        "double_modulation_image": ("sample",),
        "double_modulation_text": ("sample",),
        "single_modulation": ("sample",),
        "double_layers.image": ("reference", "target"),
        "double_layers.text": ("text",),
        "single_layers": ("text", "reference", "target"),
        "head.modulation": ("sample",),
        "head.linear": ("target",),
    }

    def __init__(self, config: Flux2Config, *, rngs: nnx.Rngs):
        self.config = config
        dim = config.dim
        self.image_in = Linear(Axis("channels", config.in_channels), Axis("embed", dim), rngs=rngs)
        self.text_in = Linear(Axis("text", config.text_dim), Axis("embed", dim), rngs=rngs)
        self.time_in = TimeEmbedding(dim, rngs=rngs)
        self.double_modulation_image = ModulationHead(dim, 2, rngs=rngs)
        self.double_modulation_text = ModulationHead(dim, 2, rngs=rngs)
        self.single_modulation = ModulationHead(dim, 1, rngs=rngs)
        self.double_layers = stacked(
            lambda rngs: DoubleLayer(config, rngs=rngs), config.double_layers, rngs
        )
        self.single_layers = stacked(
            lambda rngs: SingleLayer(config, rngs=rngs), config.single_layers, rngs
        )
        self.head = OutputHead(dim, Axis("channels", config.in_channels), rngs=rngs)

    @property
    def groups(self) -> tuple[nnx.Module, nnx.Module]:
        return self.double_layers, self.single_layers

    def condition(self, timestep_b: Float[Array, " b"]) -> Flux2Condition:
        return self.condition_at(timestep_b / TIMESTEPS)

    def condition_at(self, time_b: Float[Array, " b"]) -> Flux2Condition:
        """The condition at a time in [0, 1], the unit of FLUX.2's time embedding."""
        time = self.time_in(time_b)
        return Flux2Condition(
            double=(self.double_modulation_image(time), self.double_modulation_text(time)),
            single=self.single_modulation(time),
            head=self.head.condition(time),
        )

    def group_conditions(self, condition: Flux2Condition) -> tuple:
        return condition.double, condition.single

    def embed(
        self,
        target: Float[Array, "b h w c"] | None,
        references: Float[Array, "b k rows columns c"] | None,
        text: Float[Array, "b t text_dim"],
        condition: Flux2Condition,
        layout: AttentionLayout,
    ) -> tuple[Float[Array, "b s d"], Flux2Condition]:
        """Tokens `[target | references | text]`, which depend on no time, and the condition."""
        images = [image_tokens(image) for image in (target, references) if image is not None]
        tokens = jnp.concatenate([*map(self.image_in, images), self.text_in(text)], axis=1)
        return tokens, condition

    def predict(self, x: Float[Array, "b x d"], condition: Flux2Condition) -> Float[Array, "b x c"]:
        return self.head(x, condition.head)

    def make_expert(self, config: ActionExpertConfig, *, rngs: nnx.Rngs) -> ActionExpert:
        sizes = self.config
        return ActionExpert(
            config,
            heads=sizes.heads,
            head_dim=sizes.head_dim,
            group_sizes=sizes.group_sizes,
            rngs=rngs,
        )

    def rope(
        self,
        text_index_bt: Int[Array, "#b t"],
        text_length_b: Int[Array, " b"],
        reference_grid: tuple[int, int],
        references: int,
        target_grid: tuple[int, int] | None,
        dtype: jnp.dtype,
    ) -> Rope:
        images = [] if target_grid is None else [self.target_positions(target_grid)]
        images += [self.reference_positions(reference_grid, k) for k in range(references)]
        text = jnp.zeros((*text_index_bt.shape, 4), jnp.int32).at[..., 3].set(text_index_bt)
        images = jnp.asarray(np.concatenate(images))
        images = jnp.broadcast_to(images, (text.shape[0], *images.shape))
        return self.rope_at(jnp.concatenate([images, text], axis=1), dtype)

    def action_rope(self, horizon: int, dtype: jnp.dtype) -> Rope:
        return self.rope_at(self.action_positions(horizon)[None], dtype)

    def rope_at(self, positions: Int[Array, "#b s 4"], dtype: jnp.dtype) -> Rope:
        """Rotation tables of any positions."""
        return rope_tables(positions, self.config.rope_axes, self.config.rope_theta, dtype)

    def target_positions(self, grid: tuple[int, int]) -> Int[np.ndarray, "tokens 4"]:
        """Positions of a target's tokens, row by row."""
        return _image_positions(grid, TARGET_TIME)

    def reference_positions(
        self, grid: tuple[int, int], index: int = 0
    ) -> Int[np.ndarray, "tokens 4"]:
        """Positions of the tokens of one reference image."""
        return _image_positions(grid, REFERENCE_TIME * (1 + index))

    def action_positions(self, horizon: int) -> Int[np.ndarray, "tokens 4"]:
        """Positions `(2, step, 0, 0)` of an action chunk."""
        steps = np.arange(horizon)
        return np.stack([np.full_like(steps, ACTION_TIME), steps, 0 * steps, 0 * steps], -1)


def _image_positions(grid: tuple[int, int], time: int) -> Int[np.ndarray, "tokens 4"]:
    """Coordinates `(time, row, column, 0)` of a latent grid, row by row."""
    return np.pad(grid_positions(grid, time), ((0, 0), (0, 1)))
