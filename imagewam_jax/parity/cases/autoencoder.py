"""An autoencoder: images to latents, and back."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagewam_jax.models.autoencoders.flux2 import Flux2Autoencoder
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    Sizes,
    having,
    nchw,
    nhwc,
    normal,
    run_once,
)
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded

SIGNATURE = ("image", "decode_in")


@run_once
def encode(model, image: Float[Array, "b H W 3"]):
    """The latent, and what the encoder itself gives: mean and log-variance, where it does."""
    moments = model.encoder(image) if isinstance(model, Flux2Autoencoder) else None
    return model.encode(image), moments


@run_once
def decode(model, latent: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    return model.decode(latent)


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


KIND = Kind(
    name="autoencoder",
    part="autoencoder",
    file="io.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="autoencoder",
)
