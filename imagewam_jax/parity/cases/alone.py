"""A policy's transformer and autoencoder, each by itself, on the inputs of a training step."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from imagewam_jax.models.autoencoders.kl import AutoencoderKLConfig
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.autoencoder import recorded_or_own_stack
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    having,
    nchw,
    nhwc,
    valid_lengths,
)
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import TRAINING
from imagewam_jax.parity.images import decode, encode
from imagewam_jax.parity.native import native_velocity
from imagewam_jax.parity.stacks import recorded_stack, stack_of

NATIVE_SIGNATURE = ("native_forward_pred", "timestep_video", "noisy_video")
MOMENTS_SIGNATURE = ("vae_mean_first_frame", "video")


def _native_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    model, io, stack = loaded.module("backbone"), folder.need(*TRAINING), recorded_stack(folder)
    if not isinstance(model.config, stack.backbone):
        yield NotChecked("native_forward_pred", "of another backbone than the checkpoint's")
        return
    images = [
        stack.cells(model.config, io, name, "target_img_ids")
        for name in ("noisy_video", "ref_image_latents")
    ]
    text, timestep_b = io["text_hidden_states"], jnp.asarray(io["timestep_video"], loaded.dtype)
    masked = stack.transformer_alone == "masked"
    length_b = valid_lengths(io, "text_attention_mask") if masked else np.full(*text.shape[:2])
    velocity = native_velocity(model, *images, text, length_b, timestep_b, masks_padding=masked)
    yield Output("native_forward_pred", stack.recorded(model.config, velocity), limits.VELOCITY)
    if "native_forward_two_refs_pred" in io:
        why = "its references are of two sizes; those of ours are of one"
        yield NotChecked("native_forward_two_refs_pred", why)


def _inputs(loaded: Loaded, *_) -> dict[str, np.ndarray] | None:
    """No inputs beyond those of the training step; None, so that nothing is recorded, for a
    backbone whose recordings lack it."""
    return {} if stack_of(loaded.config("backbone")).transformer_alone else None


NATIVE = Kind(
    name="the transformer alone",
    part="backbone",
    file="train.safetensors",
    find=having(*NATIVE_SIGNATURE),
    outputs=_native_outputs,
    inputs=_inputs,
    case="policy",
)


def _moments_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """Mean and log-variance of the first frame, and the image that its latent is decoded to."""
    model, io = loaded.module("autoencoder"), folder.need("video")
    if not isinstance(model.config, AutoencoderKLConfig):
        yield NotChecked(MOMENTS.name, "of another autoencoder than the checkpoint's")
        return
    _, moments = encode(model, nhwc(io["video"][:, :, 0]))
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    yield Output("vae_mean_first_frame", nchw(mean), limits.AUTOENCODER)
    yield Output("vae_logvar_first_frame", nchw(log_variance), limits.AUTOENCODER)
    if "ref_image_latents" in io:
        stack = recorded_or_own_stack(loaded, folder)
        image = decode(model, stack.latents(model.config, io, "ref_image_latents", "ref_img_ids"))
        # The official policy clamps what it decodes; the autoencoder by itself does not.
        yield Output("vae_decoded_ref", nchw(np.clip(image, -1, 1)), limits.AUTOENCODER)


MOMENTS = Kind(
    name="the posterior of the first frame",
    part="autoencoder",
    file="train.safetensors",
    find=having(*MOMENTS_SIGNATURE),
    outputs=_moments_outputs,
    inputs=lambda loaded, *_: _inputs(loaded) if "autoencoder" in loaded else None,
    case="policy",
)
