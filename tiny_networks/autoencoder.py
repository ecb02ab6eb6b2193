"""Trains an autoencoder of FLUX.2's kind on images, in a few minutes for small ones.

As latent diffusion models train theirs (Rombach et al. 2022, arXiv 2112.10752), without the losses
of perception and of a discriminator: images are rebuilt from a sample of the latent's posterior.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from imagewam_jax.checkpoints.assets import new_autoencoder
from imagewam_jax.models.autoencoders.flux2 import Flux2Autoencoder

BATCH = 16  # crops
LEARNING_RATE = 2e-3
KL_WEIGHT = 1e-6  # of the posterior's divergence from a standard normal distribution
STATISTICS_BATCH = 64  # images


def train_autoencoder(
    section: Mapping[str, Any], frames: UInt8[np.ndarray, "n h w 3"], steps: int, seed: int
) -> Flux2Autoencoder:
    """An autoencoder of a config's `autoencoder` section, trained on crops of some images.

    Crops have half the height of the images, rounded up to the autoencoder's factor, and are as
    wide: they cost less and the network is the same at every size. Its standardization is that of
    the latents of all `frames`.
    """
    autoencoder = new_autoencoder(section)
    side = -(-frames.shape[1] // (2 * autoencoder.factor)) * autoencoder.factor
    optimizer = nnx.Optimizer(
        autoencoder,
        optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps)),
        ),
        wrt=nnx.Param,
    )
    key = jax.random.key(seed)
    with tqdm(_crops(frames, side, steps, seed), total=steps, desc="autoencoder") as bar:
        for number, images in enumerate(bar):
            error = _train_step(autoencoder, optimizer, images, jax.random.fold_in(key, number))
            bar.set_postfix(error=f"{float(error):.3f}", refresh=False)
    _standardize(autoencoder, frames)
    return autoencoder


@nnx.jit
def _train_step(
    autoencoder: Flux2Autoencoder, optimizer: nnx.Optimizer, images: Array, key: Array
) -> Float[Array, ""]:
    """One update; returns the mean absolute error of the images, in [-1, 1]."""

    def loss(autoencoder):
        moments = autoencoder.encoder(images)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        log_variance = jnp.clip(log_variance, -30, 20)
        noise = jax.random.normal(key, mean.shape)
        rebuilt = autoencoder.decoder(mean + jnp.exp(log_variance / 2) * noise)
        divergence = (mean**2 + jnp.exp(log_variance) - 1 - log_variance) / 2
        error = jnp.abs(rebuilt - images).mean()
        per_image = divergence.sum() / images.size
        return error + KL_WEIGHT * per_image, error

    (_, error), gradients = nnx.value_and_grad(loss, has_aux=True)(autoencoder)
    optimizer.update(autoencoder, gradients)
    return error


def _crops(
    frames: UInt8[np.ndarray, "n h w 3"], side: int, steps: int, seed: int
) -> Iterator[Float[np.ndarray, "b side side 3"]]:
    """Batches of random crops in [-1, 1]."""
    rng = np.random.default_rng(seed)
    count, height, width, _ = frames.shape
    for _ in range(steps):
        places = zip(
            rng.integers(count, size=BATCH),
            rng.integers(height - side + 1, size=BATCH),
            rng.integers(width - side + 1, size=BATCH),
            strict=True,
        )
        crops = [frames[n, y : y + side, x : x + side] for n, y, x in places]
        yield np.stack(crops).astype(np.float32) / 127.5 - 1


def _standardize(autoencoder: Flux2Autoencoder, frames: UInt8[np.ndarray, "n h w 3"]) -> None:
    """Sets mean and variance of the latents' channels, which are 0 and 1, to those of images."""
    encode = nnx.jit(lambda autoencoder, images: autoencoder.encode(images))
    latents = [
        np.asarray(encode(autoencoder, frames[i : i + STATISTICS_BATCH] / np.float32(127.5) - 1))
        for i in range(0, len(frames), STATISTICS_BATCH)
    ]
    cells = np.concatenate(latents).reshape(-1, autoencoder.channels)
    autoencoder.mean[...] = jnp.asarray(cells.mean(0))
    autoencoder.variance[...] = jnp.asarray(cells.var(0))
