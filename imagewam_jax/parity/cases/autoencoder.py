"""An autoencoder: images to latents, and back; by itself, and in the recordings of a policy."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from imagewam_jax.parity.cases import acting, limits
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    Sizes,
    having,
    nchw,
    nhwc,
    normal,
)
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import recorded_samples
from imagewam_jax.parity.images import decode, encode
from imagewam_jax.parity.stacks import Stack, checked_stack, recorded_stack

SIGNATURE = ("image", "decode_in")
FRAMES_SIGNATURE = ("video",)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    model, io = loaded.module("autoencoder"), folder.need(*SIGNATURE)
    latent, moments = encode(model, nhwc(io["image"]))
    if moments is not None:
        mean, _ = jnp.split(moments, 2, axis=-1)
        yield Output("encoder_moments", nchw(moments), limits.AUTOENCODER)
        yield Output("mean", nchw(mean), limits.AUTOENCODER)
    yield Output("latents", nchw(latent), limits.AUTOENCODER)
    yield Output("decoded", nchw(decode(model, nhwc(io["decode_in"]))), limits.AUTOENCODER)
    latent = nhwc(io["latents"]) if "latents" in io else latent
    yield Output("roundtrip_decoded", nchw(decode(model, latent)), limits.AUTOENCODER)


def _inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    config, (rows, columns), b = loaded.config("autoencoder"), sizes.grid, sizes.batch
    image = rng.uniform(-1, 1, (b, 3, config.factor * rows, config.factor * columns))
    return {
        "image": image.astype(np.float32),
        "decode_in": normal(rng, b, config.channels, rows, columns),
    }


AUTOENCODER = Kind(
    name="autoencoder",
    part="autoencoder",
    file="io.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="autoencoder",
)


def recorded_or_own_stack(loaded: Loaded, folder: Folder) -> Stack:
    """The kind of a policy's recordings. ConversionError: the checkpoint's backbone is another."""
    if "backbone" in loaded:
        return checked_stack(folder, loaded.config("backbone"))
    return recorded_stack(folder)


def _frames_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """The latents that a training step makes of its frames."""
    model, io = loaded.module("autoencoder"), folder.need(*FRAMES_SIGNATURE)
    stack, video = recorded_or_own_stack(loaded, folder), io["video"]
    for name, frame, noise in (
        ("ref_image_latents", 0, "eps_ref"),
        ("target_latent", -1, "eps_target"),
    ):
        latent, moments = encode(model, nhwc(video[:, :, frame]))
        latent = stack.sampled(model.config, latent, moments, io, noise)
        if latent is not None:
            yield Output(name, latent, limits.AUTOENCODER)


def _frames_inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray] | None:
    """Two frames, and what their posteriors are sampled with; None without an autoencoder."""
    if "autoencoder" not in loaded:
        return None
    config = loaded.config("autoencoder")
    rows, columns = sizes.grid
    shape = (sizes.batch, 3, 2, config.factor * rows, config.factor * columns)
    video = rng.uniform(-1, 1, shape).astype(np.float32)
    return {"video": video, **recorded_stack(folder).posterior_noise(config, sizes, rng)}


FRAMES = Kind(
    name="frames of that step",
    part="autoencoder",
    file="train.safetensors",
    find=having(*FRAMES_SIGNATURE),
    outputs=_frames_outputs,
    inputs=_frames_inputs,
    case="policy",
)


def _images_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """The latents that a policy acts on, and the image that it imagines."""
    model, io = loaded.module("autoencoder"), folder.need(*acting.SIGNATURE)
    stack = recorded_or_own_stack(loaded, folder)
    for prefix in recorded_samples(io):
        if f"{prefix}image" in io:
            latent, moments = encode(model, nhwc(io[f"{prefix}image"]))
            latent = stack.sampled(model.config, latent, moments, io, f"{prefix}eps_vae")
            if latent is not None:
                yield Output(f"{prefix}{stack.reference}", latent, limits.AUTOENCODER)
    if "infer_video.latents_per_step" in io:
        states = stack.latents(
            model.config, io, "infer_video.latents_per_step", "infer0.ref_img_ids"
        )
        image = decode(model, states[-1:])[0]
        # The official policy clamps what it imagines; the autoencoder by itself does not.
        yield Output("infer_video.image", nchw(np.clip(image, -1, 1)), limits.AUTOENCODER)


IMAGES = Kind(
    name="images that it sees and imagines",
    part="autoencoder",
    file="infer.safetensors",
    find=lambda folder: folder.having("infer0.image") or folder.having("infer_video.image"),
    outputs=_images_outputs,
    inputs=lambda loaded, folder, sizes, rng: {} if "autoencoder" in loaded else None,
    case="policy",
)
