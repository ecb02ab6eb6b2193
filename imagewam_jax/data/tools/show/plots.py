"""The plots of a page about data, as PNG files in memory."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float, Int

from imagewam_jax.html.pictures import ACCENT, MUTED, SECOND, figure_png

COLUMNS = 4  # small plots side by side


def shares(by_name: Mapping[str, tuple[float, float]]) -> bytes:
    """Name -> (share of the samples drawn, share of all samples there are)."""
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
    """Each dimension over the steps of some episodes; grey where no sample may start."""
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
    """Each dimension in its own units (above) and normalised (below)."""
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
    """How long episodes are."""
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
