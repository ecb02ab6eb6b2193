"""Recorded latents that the official code sampled from an autoencoder's posterior.

Our autoencoders take the mean. To be compared with a recording, the mean is moved by the recorded
noise here, so that both sides have the same latents and neither has chance in it.
"""

import numpy as np
from jaxtyping import Array, Float

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.autoencoders.base import to_cells
from imagewam_jax.models.autoencoders.kl import AutoencoderKLConfig
from imagewam_jax.parity.cases.base import Sizes, nchw, nhwc, normal
from imagewam_jax.parity.cases.folder import Tensors
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.images import encode

IMAGINED = "infer_video.eps_vae"  # the noise of the image that a policy starts to imagine from


def sample(
    config: AutoencoderKLConfig,
    moments: Float[Array, "b H W moments"],
    io: Tensors,
    noise: str,
    what: str,
) -> Float[np.ndarray, "b c H W"] | None:
    """What an autoencoder of `config` encodes, sampled with the recorded `noise`; None: that is not
    recorded. ConversionError: the checkpoint's autoencoder is of another kind than that of `what`.
    """
    if noise not in io:
        return None
    if not isinstance(config, AutoencoderKLConfig):
        raise ConversionError(
            f"{io.file}: latents of {what}'s autoencoder, the checkpoint has another kind"
        )
    mean, log_variance = np.split(nchw(moments), 2, axis=1)
    latent = mean + np.exp(log_variance.clip(-30, 20) / 2) * io[noise]
    return (latent - config.shift) * config.scale


def noises(
    config: AutoencoderKLConfig, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Random noise to sample the posteriors of a training step's two frames with, by name."""
    sides = (config.patch * side for side in sizes.grid)
    shape = (sizes.batch, config.latent_channels, *sides)
    return {name: normal(rng, *shape) for name in ("eps_target", "eps_ref")}


def imagined_reference(loaded: Loaded, io: Tensors, what: str) -> Float[Array, "b h w c"] | None:
    """The cells of the image that the first sample's policy imagines from, which officially is
    sampled anew; None: the checkpoint lacks its autoencoder."""
    if "autoencoder" not in loaded:
        return None
    model = loaded.module("autoencoder")
    _, moments = encode(model, nhwc(io["infer0.image"]))
    latent = sample(model.config, moments, io, IMAGINED, what)
    return to_cells(nhwc(latent), model.config.patch)
