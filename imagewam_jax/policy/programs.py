"""What a policy computes, compiled: pure functions of its model, its assets and a batch."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from imagewam_jax.models.autoencoders import to_uint8
from imagewam_jax.models.flow_matching import TIMESTEPS
from imagewam_jax.models.imagewam import ImageWAM
from imagewam_jax.models.real_time import (
    Guidance,
    GuidanceConfig,
    Prefix,
    guidance_weights,
    known_rows,
    with_known,
)
from imagewam_jax.policy.real_time import Previous
from imagewam_jax.preprocess.images import REFERENCES, ImageSpec, prepare_images
from imagewam_jax.preprocess.inputs import (
    Observations,
    PolicyAssets,
    encode_images,
    make_context,
)


@jax.jit
def with_text(text, lengths, row, features, length):
    """Text and lengths with those of one more prompt in a row."""
    return text.at[row].set(features), lengths.at[row].set(length)


@partial(jax.jit, static_argnames=("images", "euler_steps"))
def compute_actions(
    model: ImageWAM,
    assets: PolicyAssets,
    observations: Observations,
    noise: Float[Array, "b s a"],
    images: ImageSpec,
    euler_steps: int,
) -> Float[Array, "b s a"]:
    """Action chunks in real units, of the first dataset that `assets` have."""
    cache = model.prefill(make_context(assets, images, observations))
    actions, _ = model.act(cache, noise, model.action_schedule(euler_steps))
    return assets.actions.of(0).denormalize(actions)


@partial(jax.jit, static_argnames=("images", "euler_steps", "guidance"))
def compute_next_actions(
    model: ImageWAM,
    assets: PolicyAssets,
    observations: Observations,
    noise: Float[Array, "b s a"],
    previous: Previous,
    images: ImageSpec,
    euler_steps: int,
    guidance: GuidanceConfig | None,
) -> Float[Array, "b s a"]:
    """Action chunks as `compute_actions` gives them, which go on from what robots execute.

    guidance: None for a policy that was trained to do so; known actions come back as they are.
    """
    cache = model.prefill(make_context(assets, images, observations))
    units, (given, length, delay, execute) = assets.actions.of(0), previous
    normalized = units.scaled(given)
    if guidance is None:
        way: Prefix | Guidance = Prefix(normalized, delay)
    else:
        weights = guidance_weights(given.shape[1], length, delay, execute, guidance.schedule)
        way = Guidance(normalized, weights, guidance)
    actions, _ = model.act(cache, noise, model.action_schedule(euler_steps), way)
    actions = units.denormalize(actions)
    is_known = known_rows(delay, given.shape[1])
    return actions if guidance is not None else with_known(is_known, given, actions)


@partial(jax.jit, static_argnames=("images", "euler_steps"))
def compute_imagined(model, assets, observations, noise, images, euler_steps):
    """Latents [b, h, w, c] of the image that the policy expects at the end of the chunk."""
    context = make_context(assets, images, observations)
    return model.imagine(context, noise, model.target_schedule(euler_steps))[0]


@partial(jax.jit, static_argnames=("images",))
def compute_attention(model, assets, observations, noise, time, images):
    """How much the action stream attends to the first reference image [b, layer, h, w]; `time` is
    in [0, 1]."""
    timestep_b = jnp.full(noise.shape[0], TIMESTEPS * time)
    return model.action_attention(make_context(assets, images, observations), noise, timestep_b)


@partial(jax.jit, static_argnames=("spec",))
def compute_seen(images, image_size, spec):
    """uint8 images [b, reference, height, width, 3] as the model sees them."""
    prepared = prepare_images(images[:, :, None], image_size, spec, None)[:, 0]
    return to_uint8(prepared if spec.layout == REFERENCES else prepared[:, None])


@partial(jax.jit, static_argnames=("spec",))
def compute_latents(assets, images, image_size, spec):
    """Latents [b, h, w, c] of images, as training has them for its target."""
    return encode_images(assets, spec, images[:, :, None], image_size)[:, 0, 0]


@jax.jit
def compute_images(assets, latent):
    """Images [b, height, width, 3] in [-1, 1], not clamped, of latents [b, h, w, c]."""
    return assets.autoencoder.decode(latent)
