"""The interfaces of a backbone and of the action expert that goes with it.

A backbone is an image-editing transformer. Its tokens are one array `[target | reference | text]`
(see `models.blocks`), of which the context is `[reference | text]`. One cell of a latent is one
token; a transformer that merges cells into patches takes an autoencoder whose cells are patches.

Another backbone is a file beside this one and a line in `backbones.BACKBONES`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.blocks import ActionLayout, AttentionLayout
from imagewam_jax.models.layers import Rope

# The rows that pass the kernels of each submodule, by its dotted name: `reference`, `target`,
# `text`, `action`, or `sample` (one row for each sample). The longest name that fits counts.
Rows = Mapping[str, tuple[str, ...]]


@runtime_checkable
class BackboneConfig(Protocol):
    """The sizes that others need; a frozen dataclass, whose fields are those of a config file."""

    @property
    def in_channels(self) -> int:
        """Numbers in one latent cell."""

    @property
    def text_dim(self) -> int:
        """Width of the text features."""

    @property
    def heads(self) -> int:
        """Heads of queries, which are the expert's, too."""

    @property
    def head_dim(self) -> int:
        """Channels of one head."""

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Layers in each group, in order."""


@runtime_checkable
class BackboneLayer(Protocol):
    """One slice of a group."""

    def __call__(
        self, x: Float[Array, "b s d"], condition: Any, layout: AttentionLayout
    ) -> tuple[Float[Array, "b s d"], Any]:
        """The tokens after this layer, and what the context leaves to the action.

        The latter is a `KV`, or any other pytree of arrays that the layers of `make_expert` take:
        with fewer heads than there are queries, or for two attentions.
        """


@runtime_checkable
class Backbone(Protocol):
    """An `nnx.Module` with these attributes and methods; `models.layer_runner` runs its layers."""

    ROWS: ClassVar[Rows]
    config: BackboneConfig

    @property
    def groups(self) -> tuple[nnx.Module, ...]:
        """Stacks of equal layers (`layers.stacked`), in order; a slice is a `BackboneLayer`."""

    def condition(self, time_b: Float[Array, " b"]) -> Any:
        """Everything that depends on a time in [0, 1], 1 being pure noise."""

    def group_conditions(self, condition: Any) -> tuple:
        """The part of a condition that each of `groups` takes."""

    def embed(
        self,
        target: Float[Array, "b h w c"] | None,
        references: Float[Array, "b k rows columns c"] | None,
        text: Float[Array, "b t text_dim"],
        condition: Any,
        layout: AttentionLayout,
    ) -> Float[Array, "b s d"]:
        """The tokens that the first layer takes, refined where the transformer has refiners."""

    def rope(
        self,
        text_index_bt: Int[Array, "#b t"],
        text_length_b: Int[Array, " b"],
        reference_grid: tuple[int, int],
        references: int,
        target_grid: tuple[int, int] | None,
        dtype: jnp.dtype,
    ) -> Rope:
        """Rotation tables of all tokens, for references of one grid.

        text_index_bt: the numbers of the text tokens, of which `text_length_b` are valid.
        dtype: in which the tables are computed; see `layers.rope_tables`.
        """

    def action_rope(self, horizon: int, dtype: jnp.dtype) -> Rope:
        """Rotation tables of an action chunk."""

    def predict(self, target: Float[Array, "b x d"], condition: Any) -> Float[Array, "b x c"]:
        """Velocity (noise - data) of the target tokens, from those after the last layer."""

    def make_expert(self, config: ActionExpertConfig, *, rngs: nnx.Rngs) -> "Expert":
        """An action expert whose layers answer this backbone's, one to one."""

    def rope_at(self, positions: Int[Array, "#b s axes"], dtype: jnp.dtype) -> Rope:
        """Rotation tables of any positions."""

    def target_positions(self, grid: tuple[int, int]) -> Int[np.ndarray, "tokens axes"]:
        """Positions of a target's tokens, row by row."""

    def reference_positions(
        self, grid: tuple[int, int], index: int = 0
    ) -> Int[np.ndarray, "tokens axes"]:
        """Positions of the tokens of one reference image."""

    def action_positions(self, horizon: int) -> Int[np.ndarray, "tokens axes"]:
        """Positions of an action chunk."""


@runtime_checkable
class ExpertLayer(Protocol):
    """One slice of a group of the expert's."""

    def __call__(
        self, x: Float[Array, "b s d"], condition: Any, context: Any, layout: ActionLayout
    ) -> Float[Array, "b s d"]:
        """The tokens after this layer; `context` is what the backbone's layer left."""


@runtime_checkable
class Expert(Protocol):
    """The transformer of the action: an `nnx.Module` that a backbone makes for itself."""

    ROWS: ClassVar[Rows]
    config: ActionExpertConfig

    @property
    def groups(self) -> tuple[nnx.Module, ...]:
        """Stacks of equal layers, one for each of the backbone's; a slice is an `ExpertLayer`."""

    def action_in(self, actions: Float[Array, "b s action"]) -> Float[Array, "b s d"]:
        """The tokens that the first layer takes."""

    def condition(self, time_b: Float[Array, " b"]) -> Any:
        """As `Backbone.condition`."""

    def group_conditions(self, condition: Any) -> tuple:
        """As `Backbone.group_conditions`."""

    def predict(self, x: Float[Array, "b s d"], condition: Any) -> Float[Array, "b s action"]:
        """Velocity (noise - data) of the action chunk."""
