"""A page of numbers and pictures, in one file that needs no network."""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2


class Picture(NamedTuple):
    uri: str
    caption: str = ""


class Section(NamedTuple):
    """One heading of the page; the first row of a table is its header."""

    title: str
    text: str = ""
    table: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = ()


def picture(image: bytes, caption: str = "") -> Picture:
    """A PNG or JPEG file as it stands in a page."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return Picture(f"data:image/{kind};base64," + base64.b64encode(image).decode(), caption)


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    """Every text is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("imagewam_jax", "html"), autoescape=True
    )
    page = environment.get_template("page.html")
    path.write_text(page.render(title=title, subtitle=subtitle, sections=sections))
