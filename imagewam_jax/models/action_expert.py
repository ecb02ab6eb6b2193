"""The slim transformer of the action stream (docs/spec/imagewam_flux2.md, 4).

It has as many layers, heads and head channels as the backbone, so that its queries meet the
backbone's keys; its residual width is its own.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from flax import nnx
from jaxtyping import Array, Float

from imagewam_jax.models.blocks import ParallelBlock, SequentialBlock
from imagewam_jax.models.layers import (
    Linear,
    Modulation,
    ModulationHead,
    OutputHead,
    TimeEmbedding,
    stacked,
)


@dataclass(frozen=True)
class ActionExpertConfig:
    """What the expert has of its own; the rest follows from the backbone."""

    action_dim: int = 7
    dim: int = 1024
    mlp_ratio: float = 4.0
    max_horizon: int = 64

    @property
    def mlp_dim(self) -> int:
        """Cut off, as officially, but not the whole number that a ratio misses by rounding."""
        return int(self.dim * self.mlp_ratio + 1e-6)


class ActionCondition(NamedTuple):
    """Everything that depends on the action's time."""

    double: tuple[Modulation, Modulation]
    single: tuple[Modulation]
    head: Float[Array, "b 1 2 d"]


class ActionExpert(nnx.Module):
    """Embedding, stacked layers and head of the action stream, for a FLUX.2 backbone."""

    # See `Flux2.ROWS`.
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
        dim, mlp_dim = config.dim, config.mlp_dim
        double, single = group_sizes
        self.action_in = Linear({"action": config.action_dim}, {"embed": dim}, bias=True, rngs=rngs)
        self.time_in = TimeEmbedding(dim, rngs=rngs)
        self.double_modulation = ModulationHead(dim, 2, rngs=rngs)
        self.single_modulation = ModulationHead(dim, 1, rngs=rngs)
        self.double_layers = stacked(
            lambda rngs: SequentialBlock(dim, heads, head_dim, mlp_dim, rngs=rngs), double, rngs
        )
        self.single_layers = stacked(
            lambda rngs: ParallelBlock(dim, heads, head_dim, mlp_dim, rngs=rngs), single, rngs
        )
        self.head = OutputHead(dim, {"action": config.action_dim}, rngs=rngs)

    @property
    def groups(self) -> tuple[nnx.Module, nnx.Module]:
        """Stacks of equal layers, in order, one for each of the backbone's."""
        return self.double_layers, self.single_layers

    def condition(self, time_b: Float[Array, " b"]) -> ActionCondition:
        """Modulations at times in [0, 1], 1 being pure noise."""
        time = self.time_in(time_b)
        return ActionCondition(
            double=self.double_modulation(time),
            single=self.single_modulation(time),
            head=self.head.condition(time),
        )

    def group_conditions(self, condition: ActionCondition) -> tuple:
        """What each of `groups` is conditioned on."""
        return condition.double, condition.single

    def predict(
        self, x: Float[Array, "b s d"], condition: ActionCondition
    ) -> Float[Array, "b s action"]:
        """Velocity (noise - data) of the action chunk."""
        return self.head(x, condition.head)
