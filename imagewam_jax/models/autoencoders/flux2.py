"""The FLUX.2 autoencoder (docs/spec/imagewam_flux2.md, 2).

The convolutional encoder and decoder around a latent at an eighth of the resolution, in which
2 x 2 cells become the channels of one token.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imagewam_jax.models.autoencoders.base import from_cells, latent_grid, to_cells
from imagewam_jax.models.autoencoders.convolutional import Decoder, Encoder

PATCH = 2  # latent cells per side of a token
STATISTICS_EPS = 1e-4


@dataclass(frozen=True)
class Flux2AutoencoderConfig:
    """Sizes; the defaults are those of FLUX.2. Each level but the last halves the image."""

    width: int = 128
    width_multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2  # per level of the encoder; the decoder has one more
    latent_channels: int = 32

    def __post_init__(self):
        object.__setattr__(self, "width_multipliers", tuple(self.width_multipliers))

    @property
    def groups(self) -> int:
        """Groups of channels that are normed together."""
        return 32

    @property
    def has_quantizers(self) -> bool:
        """Whether there are 1 x 1 convolutions on both sides of the latent."""
        return True

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, from the full resolution down."""
        return tuple(self.width * m for m in self.width_multipliers)

    @property
    def factor(self) -> int:
        return PATCH * 2 ** (len(self.width_multipliers) - 1)

    @property
    def channels(self) -> int:
        return PATCH * PATCH * self.latent_channels


class Flux2Autoencoder(nnx.Module):
    """Implements `Autoencoder`; latents are standardized by running statistics of FLUX.2."""

    def __init__(self, config: Flux2AutoencoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.mean = nnx.BatchStat(jnp.zeros(config.channels), axes=("channels",))
        self.variance = nnx.BatchStat(jnp.ones(config.channels), axes=("channels",))

    @property
    def factor(self) -> int:
        return self.config.factor

    @property
    def channels(self) -> int:
        return self.config.channels

    def encode(self, image: Float[Array, "b height width 3"]) -> Float[Array, "b h w c"]:
        """The mean of the posterior, which is never sampled."""
        latent_grid(image.shape, self.factor)
        mean, _ = jnp.split(self.encoder(image), 2, axis=-1)
        return (to_cells(mean, PATCH) - self.mean[...]) / self._deviation

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b height width 3"]:
        """Not clamped, unlike the official ImageWAM's; `to_uint8` does that here."""
        cells = latent.astype(self.mean.dtype) * self._deviation + self.mean[...]
        return self.decoder(from_cells(cells, PATCH))

    @property
    def _deviation(self) -> Float[Array, " c"]:
        return jnp.sqrt(self.variance[...] + STATISTICS_EPS)
