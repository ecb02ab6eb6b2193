"""A policy's transformer as it was before there was an action: every token sees all others."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from imagewam_jax.models.attention import attend_xla
from imagewam_jax.models.backbones.base import Backbone
from imagewam_jax.models.blocks import AttentionLayout
from imagewam_jax.models.flow_matching import Schedule, euler_step
from imagewam_jax.models.layer_runner import Stack, run_layers
from imagewam_jax.parity.cases.base import run_once


def _velocity(
    model: Backbone,
    target: Float[Array, "b h w c"],
    reference: Float[Array, "b rows columns c"],
    text: Float[Array, "b t text_dim"],
    length_b: Int[Array, " b"],
    timestep_b: Float[Array, " b"],
    masks_padding: bool,
) -> Float[Array, "b h w c"]:
    """The velocity of a target, beside one reference.

    length_b: the text tokens that are no padding, for what is made of the text before the layers.
    masks_padding: whether the layers leave the padding out, too.
    """
    grid, target_grid = reference.shape[1:3], target.shape[1:3]
    n_text, n_reference = text.shape[1], grid[0] * grid[1]
    n_target = target_grid[0] * target_grid[1]
    rope = model.rope(jnp.arange(n_text)[None], length_b, grid, 1, target_grid, jnp.float32)
    layout = AttentionLayout(n_target, n_text, n_reference + length_b, rope, attend_xla)
    condition = model.condition(timestep_b)
    x, condition = model.embed(target, reference[:, None], text, condition, layout)
    # Every token sees all others, as a target does; padded text is still behind all.
    padding_b = n_text - length_b
    together = layout._replace(
        n_target=x.shape[1], context_length_b=-padding_b if masks_padding else None
    )
    (x, _), _ = run_layers(Stack(model, x, condition, together))
    return model.predict(x[:, :n_target], condition).reshape(target.shape)


native_velocity = run_once(_velocity, static_argnames="masks_padding")


@run_once
def native_rollout(
    model: Backbone,
    noise: Float[Array, "b h w c"],
    reference: Float[Array, "b rows columns c"],
    text: Float[Array, "b t text_dim"],
    length_b: Int[Array, " b"],
    schedule: Schedule,
) -> Float[Array, "steps b h w c"]:
    """A target after each Euler step from noise; the layers read padding."""

    def step(target, step):
        timestep, delta = step
        timestep_b = jnp.broadcast_to(timestep, target.shape[:1])
        predicted = _velocity(model, target, reference, text, length_b, timestep_b, False)
        target = euler_step(target, predicted, delta)
        return target, target

    noise = noise.astype(schedule.delta.dtype)
    return jax.lax.scan(step, noise, (schedule.timestep, schedule.delta))[1]
