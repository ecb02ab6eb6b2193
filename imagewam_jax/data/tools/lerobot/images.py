"""JPEGs of the images of a LeRobot dataset: from decoded video frames, or from parquet.

Stored JPEGs are kept byte for byte unless they have to be resized. Chroma is stored at half
resolution if the source does so (nearly every video), otherwise at full resolution.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import simplejpeg
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from imagewam_jax.data.index.raw_images import as_rgb
from imagewam_jax.errors import DataError


class ImageForm(NamedTuple):
    """source: (height, width) that images must have. size: what they become; None: as they are."""

    source: tuple[int, int]
    size: tuple[int, int] | None
    quality: int


def jpeg_of_frame(
    frame: av.VideoFrame, form: ImageForm, where: str, converter: VideoReformatter
) -> bytes:
    """Encodes a video frame. `converter` is reused, since making one takes longer than using it."""
    _check_size((frame.height, frame.width), form, where)
    halved = "420" in frame.format.name or frame.format.name in ("nv12", "nv21")
    pixels = converter.reformat(frame, format="rgb24").to_ndarray()
    return _encode(pixels, form, "420" if halved else "444")


def jpeg_of_stored(value: Mapping[str, Any], root: Path, form: ImageForm, where: str) -> bytes:
    """Encodes or keeps a row of an image column: {"bytes": bytes or None, "path": below `root`}."""
    data = value.get("bytes")
    if data is None:
        file = root / (value.get("path") or "")
        if not file.is_file():
            raise DataError(f"{where}: neither bytes nor a file: {value.get('path')!r}")
        data = file.read_bytes()
    if form.size is None and data[:3] == b"\xff\xd8\xff" and _is_color_jpeg(data, form, where):
        return data
    try:
        with Image.open(io.BytesIO(data)) as image:
            _check_size((image.height, image.width), form, where)
            if image.mode not in ("RGB", "RGBA", "L", "P"):
                raise DataError(f"{where}: an image of the mode {image.mode}, expected 8-bit RGB")
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{where}: not a readable image: {error}") from error
    return _encode(pixels, form, "444")


def jpeg_of_pixels(pixels: UInt8[np.ndarray, "h w c"], form: ImageForm) -> bytes:
    """Encodes an array of one, three or four channels, the fourth of which is left out."""
    return _encode(as_rgb(pixels), form, "444")


def _is_color_jpeg(data: bytes, form: ImageForm, where: str) -> bool:
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise DataError(f"{where}: not a readable JPEG: {error}") from error
    _check_size((height, width), form, where)
    return colors.lower() in ("ycbcr", "rgb")


def _check_size(found: tuple[int, int], form: ImageForm, where: str) -> None:
    if found != form.source:
        raise DataError(
            f"{where}: an image of {found[0]}x{found[1]}, expected "
            f"{form.source[0]}x{form.source[1]} as in info.json"
        )


def _encode(pixels: UInt8[np.ndarray, "h w 3"], form: ImageForm, chroma: str) -> bytes:
    if form.size is not None and form.size != form.source:
        height, width = form.size
        # This is antialiased when it shrinks, as `preprocess.resize` is.
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        pixels = np.asarray(resized)
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=form.quality, colorsubsampling=chroma
    )
