"""Pages of numbers and pictures, each in one file that needs no network, and their pictures.

Only what a page links to, such as videos, is in files beside it.
"""

import base64
import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import UInt8
from PIL import Image

ACCENT, MUTED, SECOND = "#2563eb", "#9ca3af", "#ea580c"
_SMALL = 128  # images of fewer rows are shown at twice their size


class Picture(NamedTuple):
    uri: str
    caption: str = ""


class Link(NamedTuple):
    """A cell of a table that leads to a file, whose path is relative to the page's folder."""

    href: str
    text: str


class Section(NamedTuple):
    """One heading of the page; the first row of a table is its header."""

    title: str
    text: str = ""
    table: Sequence[Sequence[str | Link]] = ()
    pictures: Sequence[Picture] = ()


def picture(image: bytes, caption: str = "") -> Picture:
    """Embeds a PNG, JPEG or SVG file, so that a page can show it."""
    kinds = {b"\x89PNG": "png", b"<svg": "svg+xml"}
    kind = next((kind for begin, kind in kinds.items() if image.startswith(begin)), "jpeg")
    return Picture(f"data:image/{kind};base64," + base64.b64encode(image).decode(), caption)


def render_page(
    title: str, subtitle: str, sections: Sequence[Section], refresh_seconds: int | None = None
) -> str:
    """A page in which every text is escaped. Browsers load it again after `refresh_seconds`."""
    return _template().render(
        title=title, subtitle=subtitle, sections=sections, refresh_seconds=refresh_seconds
    )


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Writes a page, which stays as it is."""
    path.write_text(render_page(title, subtitle, sections))


def image_grid(rows: Sequence[Sequence[UInt8[np.ndarray, "_ _ 3"]]]) -> bytes:
    """Arranges images of one size in rows, with thin white gaps, as a PNG file."""
    padded = [
        np.concatenate(
            [np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=255) for image in row], axis=1
        )
        for row in rows
    ]
    return image_png(np.concatenate(padded, axis=0), _scale(rows[0][0]))


def image_png(image: UInt8[np.ndarray, "h w 3"], scale: int | None = None) -> bytes:
    """Enlarges an image, its pixels kept sharp, as a PNG file; by default only if it is small."""
    height, width, _ = image.shape
    scale = scale or _scale(image)
    size = (width * scale, height * scale)
    buffer = io.BytesIO()
    Image.fromarray(image).resize(size, Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


def figure_png(figure) -> bytes:
    """Draws a figure of matplotlib as a PNG file, and closes the figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


@functools.cache
def _template() -> jinja2.Template:
    """Compiled once: a status page is rendered again every few seconds."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("imagewam_jax", "html"), autoescape=True
    )
    return environment.get_template("page.html")


def _scale(image: UInt8[np.ndarray, "h w 3"]) -> int:
    return 2 if len(image) <= _SMALL else 1
