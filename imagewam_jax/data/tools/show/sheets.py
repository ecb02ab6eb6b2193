"""Contact sheets: what the samples of an episode look like."""

import io
from collections.abc import Set
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from imagewam_jax.data.loading.samples import Batch, SampleReader, empty_batch

MOMENTS = 8  # of an episode
TILE = 112  # pixels of a tile's longer side
BAR = 12  # pixels below a tile, for its step


class Sheet(NamedTuple):
    """A JPEG, and what was wrong with the frames that it shows as grey."""

    jpeg: bytes
    problems: list[str]


def contact_sheet(reader: SampleReader, start: int, steps: int) -> Sheet:
    """Moments of the episode of `steps` steps that begins at `start` in the standard form.

    Above each other are the cameras, of each the current image and the target; a target behind the
    episode's end has an orange bar.
    """
    start_frames = start + np.unique(np.linspace(0, steps - 1, MOMENTS).astype(int))
    batch = empty_batch(len(start_frames), reader.sample)
    bad = reader.fill(batch, np.arange(len(start_frames)), start_frames)
    unreadable = {(image.row, image.camera, image.moment) for image in bad}
    columns = [
        _column(batch, row, int(anchor) - start, unreadable)
        for row, anchor in enumerate(start_frames)
    ]
    height = max(column.shape[0] for column in columns)
    width = max(column.shape[1] for column in columns)
    grid = np.full((height, width * len(columns), 3), 255, np.uint8)
    for number, column in enumerate(columns):
        left = number * width
        grid[: column.shape[0], left : left + column.shape[1]] = column
    out = io.BytesIO()
    Image.fromarray(grid).save(out, "JPEG", quality=80)
    return Sheet(out.getvalue(), list(dict.fromkeys(str(image.error) for image in bad)))


def _column(
    batch: Batch, row: int, step: int, unreadable: Set[tuple[int, int, int]]
) -> UInt8[np.ndarray, "h w 3"]:
    """One sample: a tile for each camera and moment, above each other."""
    tiles = []
    for camera, moments in enumerate(batch["images"][row]):
        height, width = batch["image_size"][row, camera]
        for moment, image in enumerate(moments):
            label = "target" if moment else f"step {step}"
            if (row, camera, moment) in unreadable:
                label = "unreadable"
            padded = moment == 1 and bool(batch["target_is_pad"][row])
            tiles.append(_tile(image[:height, :width], label, padded))
    width = max(tile.shape[1] for tile in tiles)
    return np.concatenate(
        [np.pad(t, ((0, 0), (0, width - t.shape[1]), (0, 0)), constant_values=255) for t in tiles]
    )


def _tile(image: UInt8[np.ndarray, "h w 3"], label: str, padded: bool) -> np.ndarray:
    small = Image.fromarray(image)
    small.thumbnail((TILE, TILE))
    tile = Image.new("RGB", (small.width + 2, small.height + BAR), "white")
    tile.paste(small, (1, 0))
    draw = ImageDraw.Draw(tile)
    if padded:
        draw.rectangle((0, small.height, tile.width, tile.height), fill="#ea580c")
    draw.text((2, small.height), label, fill="white" if padded else "#6b7280")
    return np.asarray(tile)
