"""Images stored as uint8 tensors: where the pixels of each lie, and how they are decoded."""

import math
import zlib

import numpy as np
from jaxtyping import UInt8

from imagewam_jax.data.index.tf_example import decode_ints
from imagewam_jax.errors import DataError


def decode_pixels(
    encoded: bytes, encoding: str, shape: tuple[int, ...]
) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of one image, in the order in which they are stored.

    encoding: one of `features.RAW_ENCODINGS`: a packed list of integers, zlib, or the bytes.
    Raises DataError when the bytes are not such an image of this shape.
    """
    size = math.prod(shape)
    if encoding == "list":
        numbers = decode_ints(encoded)
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < 256:
            raise DataError(f"its numbers reach from {numbers.min()} to {numbers.max()}")
        pixels = numbers.astype(np.uint8)
    elif encoding == "zlib":
        pixels = np.frombuffer(_inflate(encoded, size), np.uint8)
    else:
        pixels = np.frombuffer(encoded, np.uint8)
    if len(pixels) != size:
        raise DataError(f"{len(pixels)} numbers, expected the shape {shape}")
    return pixels.reshape(shape)


def _inflate(encoded: bytes, size: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        # One byte more than there should be: a few bytes of zlib can stand for gigabytes.
        pixels = stream.decompress(encoded, size + 1)
    except zlib.error as error:
        raise DataError(f"not zlib: {error}") from error
    if len(pixels) <= size and not stream.eof:
        raise DataError("the zlib data are cut off")
    return pixels


def as_rgb(pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    """Grey becomes colour and a fourth channel is left out, as is done with a PNG."""
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels[..., :3]
