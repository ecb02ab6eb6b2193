"""Image autoencoders by name. A new one is a file here and a line below."""

from imagewam_jax.models.autoencoders.base import Autoencoder, latent_grid, to_uint8
from imagewam_jax.models.autoencoders.flux2 import Flux2Autoencoder, Flux2AutoencoderConfig
from imagewam_jax.models.autoencoders.kl import AutoencoderKL, AutoencoderKLConfig
from imagewam_jax.models.autoencoders.patch import PatchAutoencoder, PatchAutoencoderConfig

# name in the config -> (its configuration, its module)
AUTOENCODERS = {
    "flux2": (Flux2AutoencoderConfig, Flux2Autoencoder),
    "kl": (AutoencoderKLConfig, AutoencoderKL),
    "patch": (PatchAutoencoderConfig, PatchAutoencoder),
}

__all__ = ["AUTOENCODERS", "Autoencoder", "latent_grid", "to_uint8"]
