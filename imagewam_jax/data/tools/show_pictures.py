"""The pictures of a page about data: contact sheets of episodes, and plots of their numbers."""

import io
from collections.abc import Mapping, Sequence, Set
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw

from imagewam_jax.data.loading.samples import Batch, SampleReader, empty_batch
from imagewam_jax.html.page import ACCENT, MUTED, SECOND, figure_png

MOMENTS = 8  # of an episode in its contact sheet
TILE = 112  # pixels of the longer side of a sheet's tile
BAR = 12  # pixels below a tile, for its label
COLUMNS = 4  # small plots side by side


class Sheet(NamedTuple):
    """A JPEG, and what is wrong with the frames that it shows as grey."""

    jpeg: bytes
    problems: list[str]


def contact_sheet(reader: SampleReader, start: int, steps: int) -> Sheet:
    """Shows some samples of an episode, which has `steps` steps from frame `start` of its split.

    Each sample is a column, with the current image and the target of each camera below each other;
    a target beyond the episode's end has an orange bar.
    """
    start_frames = start + np.unique(np.linspace(0, steps - 1, MOMENTS).astype(int))
    batch = empty_batch(len(start_frames), reader.sample)
    bad = reader.fill(batch, np.arange(len(start_frames)), start_frames)
    unreadable = {(image.row, image.camera, image.moment) for image in bad}
    columns = [
        _column(batch, row, int(frame) - start, unreadable)
        for row, frame in enumerate(start_frames)
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
    """Draws one sample: a tile for each camera and moment, below each other."""
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


def shares(by_name: Mapping[str, tuple[float, float]]) -> bytes:
    """Plots name -> (share of the samples that are drawn, share of all samples)."""
    figure, axis = plt.subplots(figsize=(8, 0.42 * len(by_name) + 0.9), constrained_layout=True)
    rows = np.arange(len(by_name))
    drawn, there = np.array(list(by_name.values())).T
    axis.barh(rows - 0.18, drawn, 0.34, color=ACCENT, label="of the samples that are drawn")
    axis.barh(rows + 0.18, there, 0.34, color=MUTED, label="of the samples that there are")
    axis.set_yticks(rows, list(by_name), fontsize=8)
    axis.invert_yaxis()
    axis.legend(frameon=False, fontsize=7)
    return figure_png(figure)


def curves(
    episodes: Sequence[Float[np.ndarray, "_ d"]],
    usable: Sequence[Bool[np.ndarray, " _"]],
    dims: Sequence[str],
) -> bytes:
    """Plots each dimension over the steps of some episodes, grey where no sample may start."""
    figure, axes = _grid(len(dims))
    for dim, axis in zip(dims, axes, strict=False):
        number = dims.index(dim)
        for values, starts in zip(episodes, usable, strict=True):
            (line,) = axis.plot(values[:, number], linewidth=0.9)
            if not starts.all():
                rest = np.where(starts, np.nan, values[:, number])
                axis.plot(rest, color=MUTED, linewidth=2.2, zorder=line.get_zorder() - 1)
        axis.set_title(dim, fontsize=8)
    return figure_png(figure)


def histograms(
    values: Float[np.ndarray, "n d"], normalized: Float[np.ndarray, "n d"], dims: Sequence[str]
) -> bytes:
    """Plots the distribution of each dimension in its own units (above) and normalized (below)."""
    figure, axes = plt.subplots(
        2, len(dims), figsize=(1.55 * len(dims) + 0.4, 2.9), constrained_layout=True, squeeze=False
    )
    for number, dim in enumerate(dims):
        for axis, column, color in zip(
            axes[:, number],
            (values[:, number], normalized[:, number]),
            (MUTED, ACCENT),
            strict=True,
        ):
            axis.hist(column, bins=40, color=color, log=True)
            axis.tick_params(labelsize=6)
            axis.yaxis.set_visible(False)
        axes[0, number].set_title(dim, fontsize=8)
        axes[1, number].axvspan(-1, 1, color=SECOND, alpha=0.08)
    return figure_png(figure)


def lengths(steps: Int[np.ndarray, " episodes"]) -> bytes:
    """Plots how long episodes are."""
    figure, axis = plt.subplots(figsize=(5, 1.8), constrained_layout=True)
    axis.hist(steps, bins=min(50, max(5, len(steps) // 3)), color=ACCENT)
    axis.set_xlabel("steps of an episode", fontsize=8)
    return figure_png(figure)


def _grid(count: int):
    rows = -(-count // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(10, 1.5 * rows + 0.3), constrained_layout=True, squeeze=False
    )
    axes = axes.ravel()
    for axis in axes:
        axis.tick_params(labelsize=6)
    for axis in axes[count:]:
        axis.axis("off")
    return figure, axes
