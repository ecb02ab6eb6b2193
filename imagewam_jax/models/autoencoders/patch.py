"""A linear autoencoder of square patches, fitted in seconds: for images of 64 to 128 pixels.

A patch of `factor` x `factor` pixels is projected on the `channels` directions in which the
patches of some frames vary most (principal components), and each projection is divided by
its standard deviation. With as many channels as a patch has numbers, nothing is lost.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, UInt8

from imagewam_jax.models.autoencoders.base import latent_grid

# The least standard deviation that a channel is divided by, in units of [-1, 1]: one of 255
# gray levels. Flow matching wants channels of equal size, hence one scale for each; but what
# varies by less than a gray level is rounding and compression, and blown up to unit variance
# it would take as much of the loss as the picture does. Such channels stay small instead.
SCALE_FLOOR = 2 / 255


@dataclass(frozen=True)
class PatchAutoencoderConfig:
    """Pixels per side of a patch, and numbers kept of it."""

    factor: int = 8
    channels: int = 64

    def __post_init__(self):
        if not 1 <= self.channels <= self.patch_size:
            raise ValueError(
                f"channels {self.channels} must be between 1 and the {self.patch_size} numbers "
                f"of a {self.factor} x {self.factor} patch"
            )

    @property
    def patch_size(self) -> int:
        return self.factor * self.factor * 3


class PatchAutoencoder(nnx.Module):
    """`encode` and `decode` are one matrix product each; a new one has a random basis."""

    def __init__(self, config: PatchAutoencoderConfig, *, rngs: nnx.Rngs):
        self.config = config
        shape = (config.patch_size, config.channels)
        basis = nnx.initializers.orthogonal()(rngs.params(), shape, jnp.float32)
        self.mean = nnx.Param(jnp.zeros(config.patch_size), axes=("patch",))
        self.basis = nnx.Param(basis, axes=("patch", "channels"))  # orthonormal columns
        self.scale = nnx.Param(jnp.ones(config.channels), axes=("channels",))

    @property
    def factor(self) -> int:
        return self.config.factor

    @property
    def channels(self) -> int:
        return self.config.channels

    def encode(self, image: Float[Array, "b height width 3"]) -> Float[Array, "b h w c"]:
        centered = _patches(image, self.factor) - self.mean[...]
        return jnp.matmul(centered, self.basis[...], precision="highest") / self.scale[...]

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b height width 3"]:
        kept = latent * self.scale[...]
        patches = jnp.matmul(kept, self.basis[...].T, precision="highest") + self.mean[...]
        return rearrange(patches, "b h w (p q c) -> b (h p) (w q) c", p=self.factor, q=self.factor)


def fit(
    frames: UInt8[np.ndarray, "n height width 3"], factor: int, channels: int
) -> PatchAutoencoder:
    """A patch autoencoder from the patches of some frames; a thousand frames are plenty.

    Computed in float64 and without randomness: equal frames give equal parameters. ValueError: no
    frames or nothing but equal patches, a side that is no multiple of `factor`, or too many
    `channels`.
    """
    config = PatchAutoencoderConfig(factor, channels)
    mean, covariance = _moments(frames, factor)
    if not covariance.any():
        raise ValueError(f"the {len(frames)} frames have nothing but equal patches")
    variance, basis = np.linalg.eigh(covariance)  # in ascending order
    variance, basis = variance[::-1][:channels], basis[:, ::-1][:, :channels]
    largest = np.take_along_axis(basis, np.abs(basis).argmax(0)[None], axis=0)
    basis = basis * np.sign(largest)  # an eigenvector's own sign is arbitrary
    scale = np.maximum(np.sqrt(np.maximum(variance, 0)), SCALE_FLOOR)

    autoencoder = jax.eval_shape(lambda: PatchAutoencoder(config, rngs=nnx.Rngs(0)))
    parameters = {"mean": mean, "basis": basis, "scale": scale}
    nnx.update(autoencoder, {k: jnp.asarray(v, jnp.float32) for k, v in parameters.items()})
    return autoencoder


def _moments(
    frames: UInt8[np.ndarray, "n height width 3"], factor: int
) -> tuple[Float[np.ndarray, " patch"], Float[np.ndarray, "patch patch"]]:
    """Mean and covariance of all patches, in float64."""
    latent_grid(frames.shape, factor)
    if not len(frames):
        raise ValueError("a patch autoencoder cannot be fitted to no frames")
    # Moments about the first patch, not about zero: nothing cancels where patches hardly differ.
    origin = _patches(_to_unit_range(frames[:1]), factor)[0, 0, 0]
    count, total, products = 0, 0.0, 0.0
    for chunk in _chunks(frames):
        patches = _patches(_to_unit_range(chunk), factor).reshape(-1, origin.size) - origin
        count += len(patches)
        total = total + patches.sum(0)
        products = products + patches.T @ patches
    mean = total / count
    return origin + mean, products / count - np.outer(mean, mean)


def _chunks(frames: UInt8[np.ndarray, "n height width 3"], size: int = 256):
    return (frames[i : i + size] for i in range(0, len(frames), size))


def _to_unit_range(frames: UInt8[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    return frames.astype(np.float64) / 127.5 - 1


def _patches(image: Float[Array, "b height width 3"], factor: int) -> Float[Array, "b h w patch"]:
    """Each patch as one row of numbers: pixel row, pixel column, color."""
    h, w = latent_grid(image.shape, factor)
    return rearrange(image, "b (h p) (w q) c -> b h w (p q c)", h=h, w=w, p=factor, q=factor)
