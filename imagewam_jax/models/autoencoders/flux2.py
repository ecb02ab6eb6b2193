"""The FLUX.2 autoencoder (docs/spec/imagewam_flux2.md, 2).

A convolutional encoder and decoder around a latent at an eighth of the resolution, in which
2 x 2 cells become the channels of one token.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from imagewam_jax.models.autoencoders.base import latent_grid
from imagewam_jax.models.layers import Axis, Linear

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
        cells = rearrange(mean, "b (h p) (w q) z -> b h w (z p q)", p=PATCH, q=PATCH)
        return (cells - self.mean[...]) / self._deviation

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b height width 3"]:
        """Not clamped, unlike the official ImageWAM's; `to_uint8` does that here."""
        cells = latent.astype(self.mean.dtype) * self._deviation + self.mean[...]
        return self.decoder(rearrange(cells, "b h w (z p q) -> b (h p) (w q) z", p=PATCH, q=PATCH))

    @property
    def _deviation(self) -> Float[Array, " c"]:
        return jnp.sqrt(self.variance[...] + STATISTICS_EPS)


class Encoder(nnx.Module):
    """Image to `[mean | log-variance]` of the latent's posterior."""

    def __init__(self, config: Flux2AutoencoderConfig, *, rngs: nnx.Rngs):
        widths, latent = config.widths, 2 * config.latent_channels
        self.conv_in = _conv(3, config.width, rngs=rngs)
        self.levels = nnx.List()
        for i, (before, width) in enumerate(zip((config.width, *widths), widths, strict=False)):
            is_last = i == len(widths) - 1
            down = None if is_last else Downsample(width, rngs=rngs)
            self.levels.append(Level(before, width, config.blocks, down, rngs=rngs))
        self.middle = Middle(widths[-1], rngs=rngs)
        self.norm_out = _norm(widths[-1], rngs=rngs)
        self.conv_out = _conv(widths[-1], latent, rngs=rngs)
        self.quantize = _pointwise(latent, latent, rngs=rngs)

    def __call__(self, image: Float[Array, "b height width 3"]) -> Float[Array, "b h w moments"]:
        x = self.conv_in(image.astype(self.conv_in.kernel.dtype))
        for level in self.levels:
            x = level(x)
        x = self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))
        return self.quantize(x)


class Decoder(nnx.Module):
    """Latent to image."""

    def __init__(self, config: Flux2AutoencoderConfig, *, rngs: nnx.Rngs):
        widths, latent = config.widths[::-1], config.latent_channels
        self.dequantize = _pointwise(latent, latent, rngs=rngs)
        self.conv_in = _conv(latent, widths[0], rngs=rngs)
        self.middle = Middle(widths[0], rngs=rngs)
        self.levels = nnx.List()
        for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            is_last = i == len(widths) - 1
            up = None if is_last else Upsample(width, rngs=rngs)
            self.levels.append(Level(before, width, config.blocks + 1, up, rngs=rngs))
        self.norm_out = _norm(widths[-1], rngs=rngs)
        self.conv_out = _conv(widths[-1], 3, rngs=rngs)

    def __call__(self, latent: Float[Array, "b h w z"]) -> Float[Array, "b height width 3"]:
        x = self.middle(self.conv_in(self.dequantize(latent)))
        for level in self.levels:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Level(nnx.Module):
    """Residual blocks of one width, then a change of resolution where `resample` is not None."""

    def __init__(
        self, inputs: int, width: int, blocks: int, resample: nnx.Module | None, *, rngs: nnx.Rngs
    ):
        self.blocks = nnx.List(
            ResidualBlock(inputs if i == 0 else width, width, rngs=rngs) for i in range(blocks)
        )
        self.resample = resample

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        for block in self.blocks:
            x = block(x)
        return x if self.resample is None else self.resample(x)


class Middle(nnx.Module):
    """Two residual blocks with an attention between, at the lowest resolution."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.before = ResidualBlock(width, width, rngs=rngs)
        self.attention = AttentionBlock(width, rngs=rngs)
        self.after = ResidualBlock(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.after(self.attention(self.before(x)))


class ResidualBlock(nnx.Module):
    """Norm, SiLU and convolution, twice, beside a shortcut."""

    def __init__(self, inputs: int, width: int, *, rngs: nnx.Rngs):
        self.norm1, self.conv1 = _norm(inputs, rngs=rngs), _conv(inputs, width, rngs=rngs)
        self.norm2, self.conv2 = _norm(width, rngs=rngs), _conv(width, width, rngs=rngs)
        self.shortcut = None if inputs == width else _pointwise(inputs, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nnx.Module):
    """One head of attention over all cells of the image."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = _norm(width, rngs=rngs)
        self.q, self.k, self.v, self.out = (_pointwise(width, width, rngs=rngs) for _ in range(4))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        z = rearrange(self.norm(x), "b h w c -> b (h w) 1 c")
        attended = jax.nn.dot_product_attention(self.q(z), self.k(z), self.v(z))
        return x + self.out(attended).reshape(x.shape)


class Downsample(nnx.Module):
    """Halves the resolution; pads at the right and at the bottom only."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.conv = _conv(width, width, stride=2, padding=(0, 1), rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x)


class Upsample(nnx.Module):
    """Doubles the resolution: repeats every cell four times, then convolves."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.conv = _conv(width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        return self.conv(x.repeat(2, axis=1).repeat(2, axis=2))


def _conv(
    inputs: int,
    outputs: int,
    *,
    stride: int = 1,
    padding: tuple[int, int] = (1, 1),
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """A 3 x 3 convolution; `padding` is before and after, the same for rows and columns."""
    return nnx.Conv(
        inputs,
        outputs,
        (3, 3),
        strides=stride,
        padding=(padding, padding),
        kernel_metadata={"axes": ("rows", "columns", "channels_in", "channels")},
        bias_metadata={"axes": ("channels",)},
        rngs=rngs,
    )


def _pointwise(inputs: int, outputs: int, *, rngs: nnx.Rngs) -> Linear:
    """A 1 x 1 convolution."""
    return Linear(Axis("channels_in", inputs), Axis("channels", outputs), bias=True, rngs=rngs)


def _norm(width: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group norm over 32 groups of channels, with statistics in float32."""
    return nnx.GroupNorm(
        width,
        num_groups=32,
        epsilon=1e-6,
        use_fast_variance=False,
        scale_metadata={"axes": ("channels",)},
        bias_metadata={"axes": ("channels",)},
        rngs=rngs,
    )
