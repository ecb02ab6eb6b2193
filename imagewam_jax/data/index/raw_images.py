"""Images stored as uint8 tensors: where the pixels of each lie, and how they are decoded."""

import math
import zlib

import numpy as np
from jaxtyping import UInt8

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
        pixels = _unpack(np.frombuffer(encoded, np.uint8))
    elif encoding == "zlib":
        pixels = np.frombuffer(_inflate(encoded, size), np.uint8)
    else:
        pixels = np.frombuffer(encoded, np.uint8)
    if len(pixels) != size:
        raise DataError(f"{len(pixels)} numbers, expected the shape {shape}")
    return pixels.reshape(shape)


def _unpack(packed: UInt8[np.ndarray, " bytes"]) -> UInt8[np.ndarray, " n"]:
    """Numbers from packed varints: below 128 a byte, and otherwise one of the low bits and a 1."""
    goes_on = packed >= 0x80
    first = np.ones(len(packed), bool)
    first[1:] = ~goes_on[:-1]
    if goes_on[-1:].any():
        raise DataError("it ends inside of a number")
    if (packed[~first] != 1).any():
        raise DataError("a number of it is not one of 0 to 255")
    return packed[first] & 0x7F | goes_on[first].astype(np.uint8) << 7


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
