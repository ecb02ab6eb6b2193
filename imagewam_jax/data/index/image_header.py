"""The size of an encoded image, from its header alone."""

import struct

import simplejpeg

PNG_START = b"\x89PNG\r\n\x1a\n"


def image_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG or a PNG; None when the bytes are neither."""
    if data.startswith(PNG_START):
        if len(data) < 24 or data[12:16] != b"IHDR":
            return None
        width, height = struct.unpack(">II", data[16:24])
        return (height, width) if 0 < height < 2**31 and 0 < width < 2**31 else None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return height, width
