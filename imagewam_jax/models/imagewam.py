"""The policy: a backbone and an action expert that share one attention per layer.

Its four functions are compositions of the same layers:

    training_loss   context and target at time t_v, action at time t_a, in lockstep
    prefill         context alone, at time 0 -> keys and values of every layer
    act             action against those, in Euler steps; no image is made
    imagine         context and target, in Euler steps

Nothing the context computes depends on target or action (see `blocks`), so that acting from
the cache equals the joint forward at equal time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from imagewam_jax.models import attention, flow_matching
from imagewam_jax.models.action_expert import ActionExpert, ActionExpertConfig
from imagewam_jax.models.attention import KV
from imagewam_jax.models.backbones import BACKBONES
from imagewam_jax.models.blocks import AttentionLayout, action_layer
from imagewam_jax.models.flow_matching import FlowConfig, Schedule
from imagewam_jax.models.layers import Linear, Rope
from imagewam_jax.models.lora import LoRAConfig, add_lora
from imagewam_jax.models.partitioning import constrain


@dataclass(frozen=True)
class ImageWAMConfig:
    """Sizes and numerics of a policy.

    `coordinate_dtype` is the dtype of positions, times and Euler steps. The official code has
    them in the dtype of its parameters, so a converted bfloat16 checkpoint wants `bfloat16`.
    `proprio_position` is the text position of the robot state's token: None puts it behind
    the valid text (the official default), a number at that fixed position. `unroll` is how
    many layers one iteration of a scan holds: more of them compile longer, and on a CPU a small
    model runs faster.
    """

    backbone: Any
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
        if self.remat not in REMAT_POLICIES:
            raise ValueError(
                f"unknown remat policy {self.remat!r}; choose from {sorted(REMAT_POLICIES)}"
            )
        attention.backend(self.attention)


# What the backward pass keeps of each layer besides its input.
REMAT_POLICIES: dict[str, Callable] = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "save_matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "none": jax.checkpoint_policies.everything_saveable,
}


class Context(NamedTuple):
    """What a decision is conditioned on.

    Valid text stands first in `text`; what is behind it is ignored. References are encoded
    camera images on one latent grid (a mosaic is one image). `proprio` is the normalised
    robot state, None for a policy without it.
    """

    text: Float[Array, "b t text_dim"]
    text_length: Int[Array, " b"]
    references: Float[Array, "b k h w c"]
    proprio: Float[Array, "b p"] | None


class Sample(NamedTuple):
    """A training batch: actions are normalised; a missing mask means all entries are valid.

    `target_weight` is of each sample's target loss, relative to the others: its mean is 1.
    """

    context: Context
    target: Float[Array, "b h w c"]
    actions: Float[Array, "b s a"]
    action_is_pad: Bool[Array, "b s"] | None = None
    action_dim_is_pad: Bool[Array, "b a"] | None = None
    target_weight: Float[Array, " b"] | None = None


class Draws(NamedTuple):
    """The random numbers of one training step."""

    target_noise: Float[Array, "b h w c"]
    target_u: Float[Array, " b"]
    action_noise: Float[Array, "b s a"]
    action_u: Float[Array, " b"]


class Cache(NamedTuple):
    """Keys and values of the context: for each layer group, stacked on a leading axis."""

    groups: tuple[KV, ...]
    length_b: Int[Array, " b"]


class Steps(NamedTuple):
    """What Euler steps went through: the state after each and the velocity used in it."""

    state: Float[Array, "steps b ..."]
    velocity: Float[Array, "steps b ..."]


class ImageWAM(nnx.Module):
    """An image-editing world action model; all methods are pure functions of arrays."""

    def __init__(self, config: ImageWAMConfig, *, rngs: nnx.Rngs):
        self.config = config
        _, backbone = next(b for b in BACKBONES.values() if isinstance(config.backbone, b[0]))
        self.backbone = backbone(config.backbone, rngs=rngs)
        self.expert = ActionExpert(
            config.expert,
            heads=config.backbone.heads,
            head_dim=config.backbone.head_dim,
            group_sizes=config.backbone.group_sizes,
            rngs=rngs,
        )
        self.proprio_in = (
            None
            if config.proprio_dim is None
            else Linear(
                {"proprio": config.proprio_dim},
                {"text": config.backbone.text_dim},
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
        """The weighted sum of both flow-matching losses, and what it is made of.

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
        predicted_target, predicted_actions = self.velocities(
            sample.context, target.x, target.time_b, action.x, action.time_b
        )
        target_error = predicted_target.astype(jnp.float32) - target.velocity
        action_error = predicted_actions.astype(jnp.float32) - action.velocity
        target_loss_b = jnp.square(target_error).mean((1, 2, 3))
        action_loss_b = _valid_mean(jnp.square(action_error), sample)
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
        target_time: Float[Array, " b"],
        actions: Float[Array, "b s a"],
        action_time: Float[Array, " b"],
    ) -> tuple[Float[Array, "b h w c"], Float[Array, "b s a"]]:
        """Predicted velocities of a noisy target and a noisy action chunk.

        Context and target are modulated by the target's time, the action by its own. The
        layers run in lockstep, so that no more than one layer's KV is alive.
        """
        backbone, expert = self.backbone, self.expert
        text, layout = self.layout(context, target.shape[1:3])
        x = backbone.embed([_flatten(target), _flatten(context.references)], text)
        a = expert.action_in(actions)
        condition, a_condition = backbone.condition(target_time), expert.condition(action_time)
        rope = self._action_rope(actions.shape[1])

        for layers, on, a_layers, a_on in zip(
            backbone.groups,
            backbone.group_conditions(condition),
            expert.groups,
            expert.group_conditions(a_condition),
            strict=True,
        ):

            def step(tokens, layer, on=on, a_on=a_on):
                (x, a), (backbone_layer, expert_layer) = tokens, layer
                x, context_kv = backbone_layer(x, on, layout)
                a = self._act_layer(
                    expert_layer, a, a_on, context_kv, rope, layout.context_length_b
                )
                x, a = (constrain(x, "batch", "tokens", None) for x in (x, a))
                return (x, a), None

            step = jax.checkpoint(step, policy=REMAT_POLICIES[self.config.remat], prevent_cse=False)
            (x, a), _ = self._scan(step, (x, a), (layers, a_layers))

        predicted = backbone.predict(x[:, : layout.n_target], condition)
        return predicted.reshape(target.shape), expert.predict(a, a_condition)

    def prefill(self, context: Context, time_b: Float[Array, " b"] | None = None) -> Cache:
        """Runs the context through all layers and keeps its keys and values.

        `time_b` modulates it; None is the official 0.
        """
        if time_b is None:
            time_b = jnp.zeros(context.text.shape[0], self._coordinate_dtype)
        text, layout = self.layout(context, None)
        x = self.backbone.embed([_flatten(context.references)], text)
        conditions = self.backbone.group_conditions(self.backbone.condition(time_b))
        groups = []
        for layers, on in zip(self.backbone.groups, conditions, strict=True):
            x, group = self._scan(lambda x, layer, on=on: layer(x, on, layout), x, layers)
            groups.append(group)
        return Cache(tuple(groups), layout.context_length_b)

    def act(
        self, cache: Cache, noise: Float[Array, "b s a"], schedule: Schedule
    ) -> tuple[Float[Array, "b s a"], Steps]:
        """Normalised actions from noise: one loop over Euler steps against the cache."""
        expert, rope = self.expert, self._action_rope(noise.shape[1])

        def step(actions, step):
            condition, delta = step
            a = expert.action_in(actions)
            conditions = expert.group_conditions(condition)
            for layers, on, kv in zip(expert.groups, conditions, cache.groups, strict=True):

                def layer_step(a, layer, on=on):
                    layer, kv = layer
                    return self._act_layer(layer, a, on, kv, rope, cache.length_b), None

                a, _ = self._scan(layer_step, a, (layers, kv))
            predicted = expert.predict(a, condition)
            actions = flow_matching.euler_step(actions, predicted, delta)
            return actions, Steps(actions, predicted)

        # All steps' modulations at once: their weights are read once, not at every step.
        conditions = jax.tree.map(lambda c: c[:, None], expert.condition(schedule.time))
        noise = noise.astype(self._coordinate_dtype)
        return jax.lax.scan(step, noise, (conditions, schedule.delta))

    def action_attention(
        self, context: Context, noisy: Float[Array, "b s a"], time_b: Float[Array, " b"]
    ) -> Float[Array, "b layer h w"]:
        """How much of its attention the action stream has on each cell of the first reference.

        Averaged over heads and action steps, at one time; the rest of each layer's weight is on
        other references, text and the actions themselves.
        """
        expert, rope, cache = self.expert, self._action_rope(noisy.shape[1]), self.prefill(context)
        seen = []

        def attend(q, segments, length_b):
            weights = attention.attention_weights(q, [s.k for s in segments], length_b)
            seen.append(weights.mean((1, 2)))
            return attention.attend_xla(q, segments, length_b)

        condition = expert.condition(time_b)
        a = expert.action_in(noisy)
        for layers, on, kv in zip(
            expert.groups, expert.group_conditions(condition), cache.groups, strict=True
        ):
            for i in range(kv.k.shape[0]):
                layer, layer_kv = jax.tree.map(lambda x, i=i: x[i], (layers, kv))
                a = action_layer(
                    layer,
                    a,
                    on,
                    layer_kv,
                    rope=rope,
                    context_length_b=cache.length_b,
                    attend=attend,
                )
        _, _, rows, columns, _ = context.references.shape
        start = noisy.shape[1]
        maps = jnp.stack(seen, 1)[..., start : start + rows * columns]
        return maps.reshape(*maps.shape[:2], rows, columns)

    def imagine(
        self, context: Context, noise: Float[Array, "b h w c"], schedule: Schedule
    ) -> tuple[Float[Array, "b h w c"], Steps]:
        """The future image's latent from noise; the context is run at each step's time."""
        text, layout = self.layout(context, noise.shape[1:3])
        references = _flatten(context.references)

        def step(target, step):
            time, delta = step
            condition = self.backbone.condition(jnp.broadcast_to(time, target.shape[:1]))
            x = self.backbone.embed([_flatten(target), references], text)
            conditions = self.backbone.group_conditions(condition)
            for layers, on in zip(self.backbone.groups, conditions, strict=True):
                x, _ = self._scan(
                    lambda x, layer, on=on: (layer(x, on, layout)[0], None), x, layers
                )
            predicted = self.backbone.predict(x[:, : layout.n_target], condition)
            predicted = predicted.reshape(target.shape)
            target = flow_matching.euler_step(target, predicted, delta)
            return target, Steps(target, predicted)

        noise = noise.astype(self._coordinate_dtype)
        return jax.lax.scan(step, noise, (schedule.time, schedule.delta))

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
        """The text with the robot state's token in it, and what the layers share."""
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
            index, tuple(grid), references, target_grid, self._coordinate_dtype
        )
        return text, AttentionLayout(
            n_target=0 if target_grid is None else target_grid[0] * target_grid[1],
            n_text=text.shape[1],
            context_length_b=references * grid[0] * grid[1] + length_b,
            rope=rope,
            attend=attention.backend(self.config.attention),
        )

    def _scan(self, step: Callable, carry, layers):
        return jax.lax.scan(step, carry, layers, unroll=self.config.unroll)

    @property
    def _coordinate_dtype(self) -> jnp.dtype:
        return jnp.dtype(self.config.coordinate_dtype)

    def _action_rope(self, horizon: int) -> Rope:
        return self.backbone.action_rope(horizon, self._coordinate_dtype)

    def _act_layer(self, layer, a, condition, kv: KV, rope: Rope, context_length_b):
        return action_layer(
            layer,
            a,
            condition,
            kv,
            rope=rope,
            context_length_b=context_length_b,
            attend=attention.backend(self.config.attention),
        )


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


def _flatten(latent: Float[Array, "b *grid c"]) -> Float[Array, "b n c"]:
    return latent.reshape(latent.shape[0], -1, latent.shape[-1])


def _valid_mean(error_bsa: Float[Array, "b s a"], sample: Sample) -> Float[Array, " b"]:
    """Mean over valid dimensions, then over valid steps; 0 where no step is valid."""
    if sample.action_dim_is_pad is None:
        error_bs = error_bsa.mean(-1)
    else:
        valid = ~sample.action_dim_is_pad[:, None]
        error_bs = flow_matching.masked_mean(error_bsa, valid, axis=-1)
    if sample.action_is_pad is None:
        return error_bs.mean(-1)
    return flow_matching.masked_mean(error_bs, ~sample.action_is_pad, axis=-1)
