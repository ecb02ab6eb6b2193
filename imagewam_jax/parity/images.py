"""Images through an autoencoder, in both directions."""

from jaxtyping import Array, Float

from imagewam_jax.models.autoencoders.convolutional import Encoder
from imagewam_jax.parity.cases.base import run_once


@run_once
def encode(model, image: Float[Array, "b H W 3"]):
    """The latent; and mean and log-variance [..., 2 c] of a variational encoder, None of others."""
    encoder = getattr(model, "encoder", None)
    moments = encoder(image) if isinstance(encoder, Encoder) else None
    return model.encode(image), moments


@run_once
def decode(model, latent: Float[Array, "b h w c"]) -> Float[Array, "b H W 3"]:
    return model.decode(latent)
