"""The slim transformer of the action, for a FLUX.2 backbone (docs/spec/imagewam_flux2.md, 4).

It has as many layers, heads and head channels as the backbone, so that its queries meet the
backbone's keys; its residual width is its own.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from imagewam_jax.models.attention import KV
from imagewam_jax.models.blocks import (
    ActionLayout,
    ParallelBlock,
    SequentialBlock,
    Tokens,
    attend_action,
)
from imagewam_jax.models.flow_matching import TIMESTEPS
from imagewam_jax.models.layers import (
    Axis,
    Linear,
    Modulation,
    ModulationHead,
    OutputHead,
    ShiftScale,
    TimeEmbedding,
    stacked,
)


@dataclass(frozen=True)
class ActionExpertConfig:
    """The sizes that are the expert's own; the others follow from the backbone."""

    action_dim: int = 7
    dim: int = 1024
    mlp_ratio: float = 4.0
    max_horizon: int = 64

    @property
    def mlp_dim(self) -> int:
        """`dim * mlp_ratio`, rounded down as officially; not if a rounding error is missing."""
        return int(self.dim * self.mlp_ratio + 1e-6)


class ActionCondition(NamedTuple):
    """Everything that depends on the action's time."""

    double: tuple[Modulation, Modulation]
    single: tuple[Modulation]
    head: ShiftScale


class _ActionLayer:
    """Makes a block a layer of its own (see `backbones.base.ExpertLayer`)."""

    def __call__(self, x: Tokens, condition, context: KV, layout: ActionLayout) -> Tokens:
        attended = attend_action(*self.project(x, condition), context, layout)
        return self.finish(x, attended, condition)


class SequentialActionLayer(_ActionLayer, SequentialBlock):
    """The counterpart of a double layer."""


class ParallelActionLayer(_ActionLayer, ParallelBlock):
    """The counterpart of a single layer."""


class ActionExpert(nnx.Module):
    """Embedding, stacked layers and head; a `backbones.base.Expert`."""

    ROWS: ClassVar = {
        "action_in": ("action",),
        "time_in": ("sample",),
        "double_modulation": ("sample",),
        "single_modulation": ("sample",),
        "double_layers": ("action",),
        "single_layers": ("action",),
        "head.modulation": ("sample",),
        "head.linear": ("action",),
    }

    def __init__(
        self,
        config: ActionExpertConfig,
        *,
        heads: int,
        head_dim: int,
        group_sizes: tuple[int, int],
        rngs: nnx.Rngs,
    ):
        self.config = config
        dim, sizes = config.dim, (config.dim, heads, head_dim, config.mlp_dim)
        double, single = group_sizes
        self.action_in = Linear(
            Axis("action", config.action_dim), Axis("embed", dim), bias=True, rngs=rngs
        )
        self.time_in = TimeEmbedding(dim, rngs=rngs)
        self.double_modulation = ModulationHead(dim, 2, rngs=rngs)
        self.single_modulation = ModulationHead(dim, 1, rngs=rngs)
        self.double_layers = stacked(
            lambda rngs: SequentialActionLayer(*sizes, rngs=rngs), double, rngs
        )
        self.single_layers = stacked(
            lambda rngs: ParallelActionLayer(*sizes, rngs=rngs), single, rngs
        )
        self.head = OutputHead(dim, Axis("action", config.action_dim), rngs=rngs)

    @property
    def groups(self) -> tuple[nnx.Module, nnx.Module]:
        return self.double_layers, self.single_layers

    def condition(self, timestep_b: Float[Array, " b"]) -> ActionCondition:
        time = self.time_in(timestep_b / TIMESTEPS)
        return ActionCondition(
            double=self.double_modulation(time),
            single=self.single_modulation(time),
            head=self.head.condition(time),
        )

    def group_conditions(self, condition: ActionCondition) -> tuple:
        return condition.double, condition.single

    def predict(
        self, x: Float[Array, "b s d"], condition: ActionCondition
    ) -> Float[Array, "b s action"]:
        return self.head(x, condition.head)
