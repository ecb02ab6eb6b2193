"""The convolutional encoder and decoder that image autoencoders of diffusion models have
(docs/spec/imagewam_flux2.md, 2, and docs/spec/imagewam_omnigen2.md, 3)."""

from typing import Protocol

import jax
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from imagewam_jax.models.layers import Axis, Linear


class Sizes(Protocol):
    """What encoder and decoder need of an autoencoder's configuration.

    width: channels behind the first convolution. widths: those of each level, from the full
    resolution down; each level but the last halves it. blocks: residual blocks of each level of the
    encoder; those of the decoder have one more. groups: how many groups of channels a group norm
    has. has_quantizers: whether there are 1 x 1 convolutions on both sides of the latent.
    """

    width: int
    widths: tuple[int, ...]
    blocks: int
    latent_channels: int
    groups: int
    has_quantizers: bool


class Encoder(nnx.Module):
    """Image to `[mean | log-variance]` of the latent's posterior."""

    def __init__(self, config: Sizes, *, rngs: nnx.Rngs):
        widths, latent = config.widths, 2 * config.latent_channels
        self.conv_in = _conv(3, config.width, rngs=rngs)
        self.levels = nnx.List()
        for i, (before, width) in enumerate(zip((config.width, *widths), widths, strict=False)):
            is_last = i == len(widths) - 1
            down = None if is_last else Downsample(width, rngs=rngs)
            level = Level(before, width, config.blocks, config.groups, down, rngs=rngs)
            self.levels.append(level)
        self.middle = Middle(widths[-1], config.groups, rngs=rngs)
        self.norm_out = _norm(widths[-1], config.groups, rngs=rngs)
        self.conv_out = _conv(widths[-1], latent, rngs=rngs)
        self.quantize = _pointwise(latent, latent, rngs=rngs) if config.has_quantizers else None

    def __call__(self, image: Float[Array, "b height width 3"]) -> Float[Array, "b h w moments"]:
        x = self.conv_in(image.astype(self.conv_in.kernel.dtype))
        for level in self.levels:
            x = level(x)
        x = self.conv_out(jax.nn.silu(self.norm_out(self.middle(x))))
        return x if self.quantize is None else self.quantize(x)


class Decoder(nnx.Module):
    """Latent to image."""

    def __init__(self, config: Sizes, *, rngs: nnx.Rngs):
        widths, latent = config.widths[::-1], config.latent_channels
        self.dequantize = _pointwise(latent, latent, rngs=rngs) if config.has_quantizers else None
        self.conv_in = _conv(latent, widths[0], rngs=rngs)
        self.middle = Middle(widths[0], config.groups, rngs=rngs)
        self.levels = nnx.List()
        for i, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            is_last = i == len(widths) - 1
            up = None if is_last else Upsample(width, rngs=rngs)
            level = Level(before, width, config.blocks + 1, config.groups, up, rngs=rngs)
            self.levels.append(level)
        self.norm_out = _norm(widths[-1], config.groups, rngs=rngs)
        self.conv_out = _conv(widths[-1], 3, rngs=rngs)

    def __call__(self, latent: Float[Array, "b h w z"]) -> Float[Array, "b height width 3"]:
        latent = latent if self.dequantize is None else self.dequantize(latent)
        x = self.middle(self.conv_in(latent.astype(self.conv_in.kernel.dtype)))
        for level in self.levels:
            x = level(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Level(nnx.Module):
    """Residual blocks of one width, then a change of resolution where `resample` is not None."""

    def __init__(
        self,
        inputs: int,
        width: int,
        blocks: int,
        groups: int,
        resample: nnx.Module | None,
        *,
        rngs: nnx.Rngs,
    ):
        self.blocks = nnx.List(
            ResidualBlock(inputs if i == 0 else width, width, groups, rngs=rngs)
            for i in range(blocks)
        )
        self.resample = resample

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        for block in self.blocks:
            x = block(x)
        return x if self.resample is None else self.resample(x)


class Middle(nnx.Module):
    """Two residual blocks with an attention between, at the lowest resolution."""

    def __init__(self, width: int, groups: int, *, rngs: nnx.Rngs):
        self.before = ResidualBlock(width, width, groups, rngs=rngs)
        self.attention = AttentionBlock(width, groups, rngs=rngs)
        self.after = ResidualBlock(width, width, groups, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        return self.after(self.attention(self.before(x)))


class ResidualBlock(nnx.Module):
    """Norm, SiLU and convolution, twice, beside a shortcut."""

    def __init__(self, inputs: int, width: int, groups: int, *, rngs: nnx.Rngs):
        self.norm1 = _norm(inputs, groups, rngs=rngs)
        self.conv1 = _conv(inputs, width, rngs=rngs)
        self.norm2 = _norm(width, groups, rngs=rngs)
        self.conv2 = _conv(width, width, rngs=rngs)
        self.shortcut = None if inputs == width else _pointwise(inputs, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w d"]:
        y = self.conv1(jax.nn.silu(self.norm1(x)))
        y = self.conv2(jax.nn.silu(self.norm2(y)))
        return y + (x if self.shortcut is None else self.shortcut(x))


class AttentionBlock(nnx.Module):
    """One head of attention over all cells of the image."""

    def __init__(self, width: int, groups: int, *, rngs: nnx.Rngs):
        self.norm = _norm(width, groups, rngs=rngs)
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


def _norm(width: int, groups: int, *, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """Group norm over groups of channels, with statistics in float32."""
    return nnx.GroupNorm(
        width,
        num_groups=groups,
        epsilon=1e-6,
        use_fast_variance=False,
        scale_metadata={"axes": ("channels",)},
        bias_metadata={"axes": ("channels",)},
        rngs=rngs,
    )
