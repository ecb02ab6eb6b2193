"""The FLUX.2 [klein] transformer (docs/spec/imagewam_flux2.md, 1).

Tokens are one array `[target | reference | text]`; the order is immaterial to attention and
makes every key set a slice (see `models.blocks`). Image tokens share their weights and, in
the double layers, text has its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from imagewam_jax.models.attention import KV
from imagewam_jax.models.blocks import (
    AttentionLayout,
    ParallelBlock,
    SequentialBlock,
    attend_streams,
)
from imagewam_jax.models.layers import (
    Linear,
    Modulation,
    ModulationHead,
    OutputHead,
    Rope,
    TimeEmbedding,
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
    def mlp_dim(self) -> int:
        """Cut off, as officially, but not the whole number that a ratio misses by rounding."""
        return int(self.dim * self.mlp_ratio + 1e-6)

    @property
    def group_sizes(self) -> tuple[int, int]:
        """Layers per group, in order; the action expert has the same."""
        return self.double_layers, self.single_layers


KLEIN_4B = Flux2Config()
KLEIN_9B = Flux2Config(text_dim=12288, dim=4096, heads=32, double_layers=8, single_layers=24)

# First coordinate of each kind of token.
TARGET_TIME = 0
REFERENCE_TIME = 10  # the k-th reference image has 10 + 10 k
ACTION_TIME = 2


class Flux2Condition(NamedTuple):
    """Everything that depends on time: modulations per layer group and of the head."""

    double: tuple[tuple[Modulation, ...], tuple[Modulation, ...]]  # image, text
    single: tuple[Modulation, ...]
    head: Float[Array, "b 1 2 d"]


class DoubleLayer(nnx.Module):
    """Image and text tokens with separate weights and one attention."""

    def __init__(self, config: Flux2Config, *, rngs: nnx.Rngs):
        sizes = (config.dim, config.heads, config.head_dim, config.mlp_dim)
        self.image = SequentialBlock(*sizes, rngs=rngs)
        self.text = SequentialBlock(*sizes, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b s d"], condition, layout: AttentionLayout
    ) -> tuple[Float[Array, "b s d"], KV]:
        """The tokens after this layer, and the keys and values that the context leaves."""
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
        """As `DoubleLayer`."""
        attended, context = attend_streams(*self.block.project(x, condition), layout)
        return self.block.finish(x, attended, condition), context


class Flux2(nnx.Module):
    """Embeddings, stacked layers and head; how they are run is the policy's affair."""

    # The rows that pass the kernels of each part, which `models.flops` counts: of tokens, or one
    # for each sample. The longest name that fits counts.
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
        self.image_in = Linear({"channels": config.in_channels}, {"embed": dim}, rngs=rngs)
        self.text_in = Linear({"text": config.text_dim}, {"embed": dim}, rngs=rngs)
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
        self.head = OutputHead(dim, {"channels": config.in_channels}, rngs=rngs)

    @property
    def groups(self) -> tuple[nnx.Module, nnx.Module]:
        """Stacks of equal layers, in order."""
        return self.double_layers, self.single_layers

    def embed(
        self, images: Sequence[Float[Array, "b _ c"]], text: Float[Array, "b t text_dim"]
    ) -> Float[Array, "b s d"]:
        """Tokens `[*images | text]`; the images are target (if any) and references."""
        return jnp.concatenate([*map(self.image_in, images), self.text_in(text)], axis=1)

    def condition(self, time_b: Float[Array, " b"]) -> Flux2Condition:
        """Modulations at times in [0, 1], 1 being pure noise."""
        time = self.time_in(time_b)
        return Flux2Condition(
            double=(self.double_modulation_image(time), self.double_modulation_text(time)),
            single=self.single_modulation(time),
            head=self.head.condition(time),
        )

    def group_conditions(self, condition: Flux2Condition) -> tuple:
        """What each of `groups` is conditioned on."""
        return condition.double, condition.single

    def predict(
        self, target: Float[Array, "b x d"], condition: Flux2Condition
    ) -> Float[Array, "b x c"]:
        """Velocity (noise - data) of the target tokens."""
        return self.head(target, condition.head)

    def rope(
        self,
        text_index_bt: Int[Array, "#b t"],
        reference_grid: tuple[int, int],
        references: int,
        target_grid: tuple[int, int] | None,
        dtype: jnp.dtype,
    ) -> Rope:
        """Rotation tables of `[target | references | text]`, all images of the same grid.

        `text_index_bt` numbers the text tokens; `dtype` is that of `layers.rope_tables`.
        """
        images = [] if target_grid is None else [image_positions(target_grid, TARGET_TIME)]
        images += [
            image_positions(reference_grid, REFERENCE_TIME * (1 + k)) for k in range(references)
        ]
        text = jnp.zeros((*text_index_bt.shape, 4), jnp.int32).at[..., 3].set(text_index_bt)
        images = jnp.asarray(np.concatenate(images))
        images = jnp.broadcast_to(images, (text.shape[0], *images.shape))
        return self._tables(jnp.concatenate([images, text], axis=1), dtype)

    def action_rope(self, horizon: int, dtype: jnp.dtype) -> Rope:
        """Rotation tables of an action chunk, at `(2, step, 0, 0)`."""
        steps = np.arange(horizon)
        positions = np.stack([np.full_like(steps, ACTION_TIME), steps, 0 * steps, 0 * steps], -1)
        return self._tables(positions[None], dtype)

    def _tables(self, positions: Int[Array, "#b s 4"], dtype: jnp.dtype) -> Rope:
        return rope_tables(positions, self.config.rope_axes, self.config.rope_theta, dtype)


def image_positions(grid: tuple[int, int], time: int) -> Int[np.ndarray, "tokens 4"]:
    """Coordinates `(time, row, column, 0)` of a latent grid, row by row."""
    rows, columns = np.indices(grid).reshape(2, -1)
    return np.stack([np.full_like(rows, time), rows, columns, np.zeros_like(rows)], -1)
