"""The policy: a backbone and an action expert that share one attention per layer.

Its four functions run the same layers (see `layer_runner`):

    training_loss   context and target at timestep t_v, action at timestep t_a, in lockstep
    prefill         context alone, at time 0 -> keys and values of every layer
    act             action against those, in Euler steps; no image is made
    imagine         context and target, in Euler steps

Nothing the context computes depends on target or action (see `blocks`), so that acting from
the cache equals the joint forward at equal time.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from imagewam_jax.models import attention, flow_matching
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones import make_backbone
from imagewam_jax.models.backbones.base import BackboneConfig
from imagewam_jax.models.blocks import ActionLayout, AttentionLayout
from imagewam_jax.models.flow_matching import FlowConfig, Schedule
from imagewam_jax.models.layer_runner import Layer, Stack, run_layers
from imagewam_jax.models.layers import Axis, Linear
from imagewam_jax.models.lora import LoRAConfig, add_lora
from imagewam_jax.models.real_time import (
    EulerStep,
    Guidance,
    Prefix,
    known_rows,
    row_condition,
    with_known,
)
from imagewam_jax.models.remat import remat_policy


@dataclass(frozen=True)
class ImageWAMConfig:
    """Sizes and numerics of a policy.

    `coordinate_dtype` is the dtype of positions, times and Euler steps. The official code has
    them in the dtype of its parameters, so a converted bfloat16 checkpoint wants `bfloat16`.
    `proprio_position` is the text position of the robot state's token: None puts it behind
    the valid text (the official default), a number at that fixed position. `remat` is what the
    backward pass keeps of each layer (see `models.remat`). `unroll` is how many layers one
    iteration of a scan holds: more of them compile longer, and a small model runs faster on a
    CPU.
    """

    backbone: BackboneConfig
    expert: ActionExpertConfig
    proprio_dim: int | None = None
    proprio_position: int | None = None
    horizon: int = 16
    target_flow: FlowConfig = field(default_factory=FlowConfig)
    action_flow: FlowConfig = field(default_factory=FlowConfig)
    target_loss_weight: float = 0.5
    action_loss_weight: float = 1.0
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    coordinate_dtype: str = "float32"
    attention: str = "xla"
    remat: str = "full"
    unroll: int = 1

    def __post_init__(self):
        if self.horizon > self.expert.max_horizon:
            raise ValueError(
                f"horizon {self.horizon} is beyond the expert's limit {self.expert.max_horizon}"
            )
        remat_policy(self.remat)
        attention.backend(self.attention)


class Context(NamedTuple):
    """The inputs that a decision is conditioned on.

    Valid text stands first in `text`; what is behind it is ignored. References are encoded
    camera images on one latent grid (a mosaic is one image). `proprio` is the normalized
    robot state, None for a policy without it.
    """

    text: Float[Array, "b t text_dim"]
    text_length: Int[Array, " b"]
    references: Float[Array, "b k h w c"]
    proprio: Float[Array, "b p"] | None


class Sample(NamedTuple):
    """A training batch: actions are normalized; a missing mask means all entries are valid.

    `target_weight` is how much each sample's target loss counts; its mean is 1. `delay` is how many
    actions of each chunk are known, and not to be predicted; None: none (see `real_time`).
    """

    context: Context
    target: Float[Array, "b h w c"]
    actions: Float[Array, "b s a"]
    action_is_pad: Bool[Array, "b s"] | None = None
    action_dim_is_pad: Bool[Array, "b a"] | None = None
    target_weight: Float[Array, " b"] | None = None
    delay: Int[Array, " b"] | None = None


class Draws(NamedTuple):
    """The random numbers of one training step."""

    target_noise: Float[Array, "b h w c"]
    target_u: Float[Array, " b"]
    action_noise: Float[Array, "b s a"]
    action_u: Float[Array, " b"]


class Cache(NamedTuple):
    """Keys and values of the context, for each group of layers.

    Those of a group (a `KV`, or what else its layers leave) are stacked on a leading layer axis.
    `length_b` is how many context tokens are valid.
    """

    groups: tuple[Any, ...]
    length_b: Int[Array, " b"]


class Steps(NamedTuple):
    """The trajectory of an Euler loop: the state after each step and the velocity used in it."""

    state: Float[Array, "steps b ..."]
    velocity: Float[Array, "steps b ..."]


class ImageWAM(nnx.Module):
    """An image-editing world action model; all methods are pure functions of arrays."""

    def __init__(self, config: ImageWAMConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.backbone = make_backbone(config.backbone, rngs=rngs)
        self.expert = self.backbone.make_expert(config.expert, rngs=rngs)
        self.proprio_in = (
            None
            if config.proprio_dim is None
            else Linear(
                Axis("proprio", config.proprio_dim),
                Axis("text", config.backbone.text_dim),
                bias=True,
                rngs=rngs,
            )
        )

        if config.lora.rank:
            for layers in self.backbone.groups:
                add_lora(layers, config.lora, rngs)

    def training_loss(
        self, sample: Sample, draws: Draws
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, "..."]]]:
        """The weighted sum of both flow-matching losses, and its parts.

        The second result has `target_loss`, `action_loss` (scalars, before their weights in
        the sum) and `*_loss_b` (per sample, before the weight of its time).
        """
        config, dtype = self.config, self._coordinate_dtype
        target = flow_matching.noised(
            sample.target,
            draws.target_noise,
            draws.target_u,
            config.target_flow.train_shift,
            dtype,
        )
        action = flow_matching.noised(
            sample.actions,
            draws.action_noise,
            draws.action_u,
            config.action_flow.train_shift,
            dtype,
        )
        is_known, noisy = None, action.x
        if sample.delay is not None:
            is_known = known_rows(sample.delay, sample.actions.shape[1])
            noisy = with_known(is_known, sample.actions, noisy)
        predicted_target, predicted_actions = self.velocities(
            sample.context, target.x, target.timestep_b, noisy, action.timestep_b, is_known
        )
        target_error = predicted_target.astype(jnp.float32) - target.velocity
        action_error = predicted_actions.astype(jnp.float32) - action.velocity
        target_loss_b = jnp.square(target_error).mean((1, 2, 3))
        left_out = [mask for mask in (sample.action_is_pad, is_known) if mask is not None]
        action_loss_b = flow_matching.valid_mean(
            jnp.square(action_error),
            functools.reduce(jnp.logical_or, left_out) if left_out else None,
            sample.action_dim_is_pad,
        )
        weight_b = target.weight_b
        if sample.target_weight is not None:
            weight_b = weight_b * sample.target_weight
        target_loss = (weight_b * target_loss_b).mean()
        action_loss = (action.weight_b * action_loss_b).mean()
        loss = config.target_loss_weight * target_loss + config.action_loss_weight * action_loss
        return loss, {
            "target_loss": target_loss,
            "action_loss": action_loss,
            "target_loss_b": target_loss_b,
            "action_loss_b": action_loss_b,
        }

    def velocities(
        self,
        context: Context,
        target: Float[Array, "b h w c"],
        target_timestep: Float[Array, " b"],
        actions: Float[Array, "b s a"],
        action_timestep: Float[Array, " b"],
        is_known: Bool[Array, "b s"] | None = None,
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b s a"]]:
        """Predicted velocities of a noisy target and a noisy action chunk.

        Context and target are modulated by the target's timestep, from 0 to 1000, the action by its
        own; actions that are known are at time 0.
        """
        text, layout = self.layout(context, target.shape[1:3])
        backbone = self.backbone_stack(target, context.references, text, layout, target_timestep)
        condition = self.expert.condition(action_timestep)
        if is_known is not None:
            clean = self.expert.condition(jnp.zeros_like(action_timestep[:1]))
            condition = row_condition(is_known, clean, condition)
        action_layout = self.action_layout(actions.shape[1], layout.context_length_b)
        expert = Stack(self.expert, self.expert.action_in(actions), condition, action_layout)
        remat, unroll = self.config.remat, self.config.unroll
        (x, a), _ = run_layers(backbone, expert, remat=remat, unroll=unroll)
        predicted = self.backbone.predict(x[:, : layout.n_target], backbone.condition)
        return predicted.reshape(target.shape), self.expert.predict(a, condition)

    def prefill(self, context: Context, timestep_b: Float[Array, " b"] | None = None) -> Cache:
        """Runs the context through all layers and keeps its keys and values.

        `timestep_b` modulates it; None is the official 0.
        """
        if timestep_b is None:
            timestep_b = jnp.zeros(context.text.shape[0], self._coordinate_dtype)
        text, layout = self.layout(context, None)
        stack = self.backbone_stack(None, context.references, text, layout, timestep_b)
        _, groups = run_layers(stack, tap=lambda seen: seen.context, unroll=self.config.unroll)
        return Cache(groups, layout.context_length_b)

    def act(
        self,
        cache: Cache,
        noise: Float[Array, "b s a"],
        schedule: Schedule,
        previous: Prefix | Guidance | None = None,
    ) -> tuple[Float[Array, "b s a"], Steps]:
        """Normalized actions from noise: one loop over Euler steps against the cache.

        `previous`: what is executed in the meantime, from which the chunk goes on.
        """
        expert, layout = self.expert, self.action_layout(noise.shape[1], cache.length_b)

        def network(actions, at):
            stack = Stack(expert, expert.action_in(actions), at.condition, layout)
            (_, a), _ = run_layers(expert=stack, cache=cache.groups, unroll=self.config.unroll)
            return expert.predict(a, at.condition)

        velocity, held = network, lambda actions: actions
        if isinstance(previous, Prefix):
            clean = expert.condition(jnp.zeros(1, self._coordinate_dtype))
            velocity, held = functools.partial(previous.velocity, network, clean), previous.held
        elif previous is not None:
            velocity = functools.partial(previous.velocity, network)

        def step(actions, at):
            predicted = velocity(actions, at)
            actions = held(flow_matching.euler_step(actions, predicted, at.delta))
            return actions, Steps(actions, predicted)

        # The conditions of all steps at once: their weights are read once, not at every step.
        conditions = jax.tree.map(lambda c: c[:, None], expert.condition(schedule.timestep))
        noise = held(noise.astype(self._coordinate_dtype))
        return jax.lax.scan(step, noise, EulerStep(conditions, *schedule))

    def action_attention(
        self, context: Context, noisy: Float[Array, "b s a"], timestep_b: Float[Array, " b"]
    ) -> Float[Array, "b layer h w"]:
        """How much of its attention the action pays to each cell of the first reference.

        Averaged over heads and action steps, at one timestep; the rest of each layer's weight is on
        other references, text and the actions themselves.
        """
        expert, cache = self.expert, self.prefill(context)
        _, _, rows, columns, _ = context.references.shape
        first = slice(noisy.shape[1], noisy.shape[1] + rows * columns)

        def reference_weights(seen: Layer) -> Float[Array, "b cells"]:
            q, segments, length_b = seen.attentions[-1]
            weights = attention.attention_weights(q, [s.k for s in segments], length_b)
            return weights.mean((1, 2))[:, first]

        layout = self.action_layout(noisy.shape[1], cache.length_b)
        stack = Stack(expert, expert.action_in(noisy), expert.condition(timestep_b), layout)
        _, groups = run_layers(expert=stack, cache=cache.groups, tap=reference_weights)
        maps = jnp.concatenate(groups).swapaxes(0, 1)
        return maps.reshape(*maps.shape[:2], rows, columns)

    def imagine(
        self, context: Context, noise: Float[Array, "b h w c"], schedule: Schedule
    ) -> tuple[Float[Array, "b h w c"], Steps]:
        """The future image's latent from noise; the context is run at each step's time."""
        text, layout = self.layout(context, noise.shape[1:3])

        def step(target, step):
            timestep, delta = step
            timestep_b = jnp.broadcast_to(timestep, target.shape[:1])
            stack = self.backbone_stack(target, context.references, text, layout, timestep_b)
            (x, _), _ = run_layers(stack, unroll=self.config.unroll)
            predicted = self.backbone.predict(x[:, : layout.n_target], stack.condition)
            predicted = predicted.reshape(target.shape)
            target = flow_matching.euler_step(target, predicted, delta)
            return target, Steps(target, predicted)

        noise = noise.astype(self._coordinate_dtype)
        return jax.lax.scan(step, noise, (schedule.timestep, schedule.delta))

    def action_schedule(self, steps: int = 10) -> Schedule:
        """The Euler steps of `act` (the official count is 10)."""
        shift = self.config.action_flow.sample_shift
        return flow_matching.sampling_schedule(steps, shift, self._coordinate_dtype)

    def target_schedule(self, steps: int = 10) -> Schedule:
        """The Euler steps of `imagine`."""
        shift = self.config.target_flow.sample_shift
        return flow_matching.sampling_schedule(steps, shift, self._coordinate_dtype)

    def layout(
        self, context: Context, target_grid: tuple[int, int] | None
    ) -> tuple[Float[Array, "b t text_dim"], AttentionLayout]:
        """The text with the robot state's token in it, and what the backbone's layers share.

        `target_grid` is None where there is no target.
        """
        text, length_b = context.text, context.text_length
        index = jnp.arange(text.shape[1])[None]
        if self.proprio_in is not None:
            # One more row, so that the token has a place behind a text of full length.
            text = jnp.pad(text, ((0, 0), (0, 1), (0, 0)))
            index = jnp.arange(text.shape[1])[None]
            is_proprio = index == length_b[:, None]
            proprio = self.proprio_in(context.proprio).astype(text.dtype)
            text = jnp.where(is_proprio[..., None], proprio[:, None], text)
            length_b = length_b + 1
            if self.config.proprio_position is not None:
                index = jnp.where(is_proprio, self.config.proprio_position, index)
        _, references, *grid, _ = context.references.shape
        rope = self.backbone.rope(
            index, length_b, tuple(grid), references, target_grid, self._coordinate_dtype
        )
        return text, AttentionLayout(
            n_target=0 if target_grid is None else target_grid[0] * target_grid[1],
            n_text=text.shape[1],
            context_length_b=references * grid[0] * grid[1] + length_b,
            rope=rope,
            attend=attention.backend(self.config.attention),
        )

    def backbone_stack(
        self,
        target: Float[Array, "b h w c"] | None,
        references: Float[Array, "b k rows columns c"],
        text: Float[Array, "b t text_dim"],
        layout: AttentionLayout,
        timestep_b: Float[Array, " b"],
    ) -> Stack:
        """The backbone with its tokens at a timestep; text and layout are those of `layout`."""
        condition = self.backbone.condition(timestep_b)
        tokens, condition = self.backbone.embed(target, references, text, condition, layout)
        return Stack(self.backbone, tokens, condition, layout)

    def action_layout(self, horizon: int, context_length_b: Int[Array, " b"]) -> ActionLayout:
        """What the expert's layers share."""
        rope = self.backbone.action_rope(horizon, self._coordinate_dtype)
        return ActionLayout(context_length_b, rope, attention.backend(self.config.attention))

    @property
    def _coordinate_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.coordinate_dtype)


def sample_draws(key: Key[Array, ""], sample: Sample) -> Draws:
    """Standard normal noises and uniform times of the shapes that `sample` needs."""
    keys = jax.random.split(key, 4)
    batch = sample.actions.shape[0]
    return Draws(
        jax.random.normal(keys[0], sample.target.shape),
        jax.random.uniform(keys[1], (batch,)),
        jax.random.normal(keys[2], sample.actions.shape),
        jax.random.uniform(keys[3], (batch,)),
    )
