"""Pictures as files in memory."""

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import UInt8
from PIL import Image

ACCENT, MUTED, SECOND = "#2563eb", "#9ca3af", "#ea580c"
_PIXEL_SCALE = 2  # small camera images are shown larger


def image_grid(rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]]) -> bytes:
    """Images of one size in rows, with a thin white gap."""
    padded = [
        np.concatenate(
            [np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=255) for image in row], axis=1
        )
        for row in rows
    ]
    return image_png(np.concatenate(padded, axis=0))


def image_png(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An enlarged image, its pixels kept sharp."""
    height, width, _ = image.shape
    size = (width * _PIXEL_SCALE, height * _PIXEL_SCALE)
    buffer = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def figure_png(figure) -> bytes:
    """A figure of matplotlib, which is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()
