"""Antialiased bilinear resizing inside jit, as two products with weight matrices.

The results are those of PyTorch's
`interpolate(mode="bilinear", antialias=True, align_corners=False)`, and so of torchvision's
`Resize`. Images of several sizes may lie in the top left corner of one
buffer: the weights are made from each image's true size, and nothing outside it is read.

A product costs an accelerator next to nothing, while gathering single pixels is slow there. On a
CPU it costs more than decoding the image.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

Size = tuple[int, int]  # rows, columns


class Region(NamedTuple):
    """A rectangle: first row and column, and numbers of rows and columns."""

    start: Int[Array, "*#batch 2"]
    size: Int[Array, "*#batch 2"]


def resize(
    images: Float[Array, "*batch H W c"],
    size: Size,
    true_size: Int[Array, "*#batch 2"] | None = None,
) -> Float32[Array, "*batch h w c"]:
    """Stretches images to `size`.

    An image that already has `size` comes back bit by bit; an image without rows or columns is
    black.

    true_size: rows and columns of each image in the buffer's corner; None: all of the buffer.
    """
    source = None if true_size is None else corner(true_size[..., None, :])
    return jnp.moveaxis(resize_planes(jnp.moveaxis(images, -1, -3), size, source), -3, -1)


def letterbox(
    images: Float[Array, "*batch H W c"],
    size: Size,
    true_size: Int[Array, "*#batch 2"] | None = None,
) -> Float32[Array, "*batch h w c"]:
    """Scales images as far as `size` and their own aspect ratio allow, centered in black."""
    if true_size is None:
        true_size = jnp.asarray(images.shape[-3:-1], jnp.int32)
    true_size = true_size[..., None, :]
    planes = jnp.moveaxis(images, -1, -3)
    found = resize_planes(planes, size, corner(true_size), letterbox_region(size, true_size))
    return jnp.moveaxis(found, -3, -1)


def corner(true_size: Int[Array, "*batch 2"]) -> Region:
    """The top left corner of a buffer."""
    return Region(jnp.zeros_like(true_size), true_size)


def letterbox_region(size: Size, true_size: Int[Array, "*batch 2"]) -> Region:
    """The place in `size` that an image fills; of an odd remainder more is at the bottom or right.

    The shorter side is rounded to the nearest pixel, halves to even, and is at least 1.
    """
    whole = jnp.asarray(size, jnp.int32)
    rows, columns = true_size[..., 0], true_size[..., 1]
    tall = whole[0] * columns <= whole[1] * rows  # the height limits the scale
    inner_rows = jnp.where(tall, whole[0], _rounded_ratio(rows * whole[1], columns))
    inner_columns = jnp.where(tall, _rounded_ratio(columns * whole[0], rows), whole[1])
    inner = jnp.stack([inner_rows, inner_columns], axis=-1)
    return Region((whole - inner) // 2, inner)


def _rounded_ratio(above: Int[Array, "*n"], below: Int[Array, "*n"]) -> Int[Array, "*n"]:
    below = jnp.maximum(below, 1)  # it is 0 for an image without pixels
    whole, rest = above // below, above % below
    up = (2 * rest > below) | ((2 * rest == below) & (whole % 2 == 1))
    return jnp.maximum(whole + up, 1)


def resize_planes(
    planes: Float[Array, "*batch H W"],
    size: Size,
    source: Region | None = None,
    target: Region | None = None,
) -> Float32[Array, "*batch h w"]:
    """Stretches the `source` region of single-channel images over the `target` region of results.

    A region that is None is the whole image. Results are 0 outside of the target region. The
    leading axes of regions are broadcast against those of `planes`.
    """
    for axis, outputs in ((-2, size[0]), (-1, size[1])):
        inputs = planes.shape[axis]
        if inputs == outputs and source is None and target is None:
            continue
        weights = resize_weights(inputs, outputs, _along(source, axis), _along(target, axis))
        # HIGHEST: accelerators would otherwise round the factors to bfloat16 or TF32.
        product = "...ph,...hw->...pw" if axis == -2 else "...pw,...hw->...hp"
        planes = jnp.einsum(
            product, weights, planes.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        )
    return planes.astype(jnp.float32)


Interval = tuple[Int[Array, "*batch"], Int[Array, "*batch"]]  # start, length


def _along(region: Region | None, axis: int) -> Interval | None:
    return None if region is None else (region.start[..., axis], region.size[..., axis])


def resize_weights(
    inputs: int, outputs: int, source: Interval | None = None, target: Interval | None = None
) -> Float32[Array, "*batch outputs inputs"]:
    """The weight of each input pixel in each output pixel.

    Weights form a triangle, which is two output pixels wide when an image shrinks and two input
    pixels wide when it grows, cut off at the image's edge, with the sum 1.

    source, target: the intervals of pixels that are mapped on each other; None: all.
    """
    source = source or (jnp.int32(0), jnp.int32(inputs))
    target = target or (jnp.int32(0), jnp.int32(outputs))
    source_start, source_size = (bound[..., None, None] for bound in source)
    target_start, target_size = (bound[..., None, None] for bound in target)
    column = jnp.arange(inputs, dtype=jnp.int32)[None, :] - source_start
    row = jnp.arange(outputs, dtype=jnp.int32)[:, None] - target_start

    # Distances of pixel centers are times 2 * target_size, and the triangle times twice the larger
    # size: in whole numbers, weights do not depend on how a compiler rounds.
    distance = jnp.abs((2 * column + 1) * target_size - (2 * row + 1) * source_size)
    inside = (column >= 0) & (column < source_size) & (row >= 0) & (row < target_size)
    height = 2 * jnp.maximum(source_size, target_size) - distance
    weights = jnp.where(inside, jnp.maximum(height, 0), 0)
    total = jnp.maximum(weights.sum(axis=-1, keepdims=True), 1)
    return weights.astype(jnp.float32) / total.astype(jnp.float32)
