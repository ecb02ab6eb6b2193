"""The autoencoders that diffusers calls `AutoencoderKL` (docs/spec/imagewam_omnigen2.md, 3, and
docs/spec/imagewam_ovis_u1.md, 3).

OmniGen2's is that of FLUX.1, Ovis-U1's that of SDXL. A patch of latent cells becomes the channels
of one token.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imagewam_jax.models.autoencoders.base import from_cells, latent_grid, to_cells
from imagewam_jax.models.autoencoders.convolutional import Decoder, Encoder


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """Sizes; the defaults are those of FLUX.1 and OmniGen2. Each level but the last halves the
    image. A latent is `(mean - shift) * scale`; a token is `patch` x `patch` cells of it."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    blocks: int = 2  # per level of the encoder; the decoder has one more
    latent_channels: int = 16
    groups: int = 32
    has_quantizers: bool = False
    scale: float = 0.3611
    shift: float = 0.1159
    patch: int = 2

    def __post_init__(self):
        object.__setattr__(self, "widths", tuple(self.widths))
        if wrong := [width for width in self.widths if width % self.groups]:
            raise ValueError(f"width {wrong[0]} is not a multiple of groups {self.groups}")

    @property
    def width(self) -> int:
        """Channels behind the first convolution."""
        return self.widths[0]

    @property
    def factor(self) -> int:
        return self.patch * 2 ** (len(self.widths) - 1)

    @property
    def channels(self) -> int:
        return self.patch**2 * self.latent_channels


FLUX1 = AutoencoderKLConfig()
SDXL = AutoencoderKLConfig(latent_channels=4, has_quantizers=True, scale=0.13025, shift=0.0)


class AutoencoderKL(nnx.Module):
    """Implements `Autoencoder`; the posterior's mean is taken, where the official code samples."""

    def __init__(self, config: AutoencoderKLConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)

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
        return to_cells((mean - self.config.shift) * self.config.scale, self.config.patch)

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b height width 3"]:
        """Not clamped, unlike the official ImageWAM's; `to_uint8` does that here."""
        z = from_cells(latent, self.config.patch)
        return self.decoder(z / self.config.scale + self.config.shift)
