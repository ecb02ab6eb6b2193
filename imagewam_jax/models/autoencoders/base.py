"""The interface through which the rest of the project uses an autoencoder."""

from typing import Protocol

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, UInt8


class Autoencoder(Protocol):
    """Images to latents and back; RGB in [-1, 1], rows first, channels last.

    `factor` is how many pixels one latent cell covers in each direction, `channels` how many
    numbers it holds, each near unit variance. `encode` is deterministic and raises ValueError
    for an image side that is no multiple of `factor`. `decode` does not clamp, so that errors
    of a decoded image are errors of the decoder; `to_uint8` clamps, for whoever looks at it.
    """

    factor: int
    channels: int

    def encode(self, image: Float[Array, "b height width 3"]) -> Float[Array, "b h w c"]: ...

    def decode(self, latent: Float[Array, "b h w c"]) -> Float[Array, "b height width 3"]: ...


def to_uint8(image: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Pixels of an image in [-1, 1], clamped to that range and rounded to the nearest level."""
    levels = (jnp.clip(image.astype(jnp.float32), -1, 1) + 1) * 127.5
    return jnp.round(levels).astype(jnp.uint8)


def latent_grid(shape: tuple[int, ...], factor: int) -> tuple[int, int]:
    """Rows and columns of the latent of an image of `shape` [..., height, width, 3].

    ValueError: a side is no multiple of `factor`.
    """
    *_, height, width, _ = shape
    for name, side in (("height", height), ("width", width)):
        if side % factor:
            raise ValueError(f"image {name} {side} is not a multiple of {factor}")
    return height // factor, width // factor


def to_cells(latent: Float[Array, "b H W z"], patch: int) -> Float[Array, "b h w c"]:
    """Merges each `patch` x `patch` of latent cells into one, with channels in the order (channel,
    row, column)."""
    return rearrange(latent, "b (h p) (w q) z -> b h w (z p q)", p=patch, q=patch)


def from_cells(cells: Float[Array, "b h w c"], patch: int) -> Float[Array, "b H W z"]:
    """The inverse of `to_cells`."""
    return rearrange(cells, "b h w (z p q) -> b (h p) (w q) z", p=patch, q=patch)
