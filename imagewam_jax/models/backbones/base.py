"""The interfaces of a backbone and of the action expert that goes with it.

A backbone is an image-editing transformer. Its tokens are one array `[target | reference | text]`
(see `models.blocks`), of which the context is `[reference | text]`. One cell of a latent is one
token; a transformer that merges cells into patches takes an autoencoder whose cells are patches.

Another backbone is a file beside this one and a line in `backbones.BACKBONES`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
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
    def kv_heads(self) -> int:
        """Heads of keys and values, each of which is for `heads / kv_heads` heads of queries."""

    @property
    def head_dim(self) -> int:
        """Channels of one head."""

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Layers in each group, in order."""

    @property
    def extra_attentions(self) -> Mapping[str, int]:
        """How many attentions there are besides one of all tokens in each layer of the groups.

        `text`, `reference`, `target`: of the text, of each reference and of the target alone.
        `image`: of references, target and action, without text.
        """


@runtime_checkable
class BackboneLayer(Protocol):
    """One layer of a backbone, a slice of a group."""

    def __call__(
        self, x: Float[Array, "b s d"], condition: Any, layout: AttentionLayout
    ) -> tuple[Float[Array, "b s d"], Any]:
        """The tokens after this layer, and what the context leaves to the action.

        The latter is a `KV`, or any other pytree of arrays that the layers of `make_expert` take:
        with fewer heads than there are queries, or for two attentions.
        """


@runtime_checkable
class Transformer(Protocol):
    """An `nnx.Module` whose layers `models.layer_runner` can run."""

    ROWS: ClassVar[Rows]

    @property
    def groups(self) -> tuple[nnx.Module, ...]:
        """Stacks of equal layers (`layers.stacked`), in order; a slice is one layer."""

    def condition(self, timestep_b: Float[Array, " b"]) -> Any:
        """Everything that depends on time, from the scheduler's timestep (0: data, 1000: pure
        noise), in the timestep's dtype. A network converts it to the unit and direction of its own
        weights.

        All arrays of an expert's condition are [b, 1, d], and it takes conditions whose arrays
        are [b, s, d], in which each row of the chunk has a time of its own
        (`real_time.row_condition`)."""

    def group_conditions(self, condition: Any) -> tuple:
        """The part of a condition that each of `groups` takes."""

    def predict(self, x: Float[Array, "b x d"], condition: Any) -> Float[Array, "b x c"]:
        """Velocity (noise - data) of target or action, from its tokens after the last layer."""


@runtime_checkable
class Backbone(Transformer, Protocol):
    """The image-editing transformer; its layers are `BackboneLayer`s."""

    config: BackboneConfig

    def embed(
        self,
        target: Float[Array, "b h w c"] | None,
        references: Float[Array, "b k rows columns c"] | None,
        text: Float[Array, "b t text_dim"],
        condition: Any,
        layout: AttentionLayout,
    ) -> tuple[Float[Array, "b s d"], Any]:
        """The tokens that the first layer takes, refined where the transformer has refiners, and
        the condition of the layers, to which a transformer can add what it makes of the text.

        Target or references are None where there are none.
        """

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

    def make_expert(self, config: ActionExpertConfig, *, rngs: nnx.Rngs) -> "Expert":
        """An action expert whose layers answer this backbone's, one to one."""


@runtime_checkable
class ExpertLayer(Protocol):
    """One layer of an expert, a slice of a group."""

    def __call__(
        self, x: Float[Array, "b s d"], condition: Any, context: Any, layout: ActionLayout
    ) -> Float[Array, "b s d"]:
        """The tokens after this layer; `context` is what the backbone's layer left."""


@runtime_checkable
class Expert(Transformer, Protocol):
    """The transformer of the action, with a group of `ExpertLayer`s for each of the backbone's."""

    config: ActionExpertConfig

    def action_in(self, actions: Float[Array, "b s action"]) -> Float[Array, "b s d"]:
        """The tokens that the first layer takes."""
