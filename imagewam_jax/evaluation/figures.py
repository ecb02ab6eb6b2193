"""The pictures of a report, as PNG files in memory."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from imagewam_jax.html.pictures import ACCENT, MUTED, SECOND, figure_png, image_png


def training_curves(rows: Sequence[Mapping]) -> bytes:
    """Losses of both streams over steps, on training and on held-out samples."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), constrained_layout=True)
    for axis, name in zip(axes, ("target_loss", "action_loss"), strict=True):
        for kind, color in (("train", MUTED), ("validation", ACCENT)):
            points = [(r["step"], r[name]) for r in rows if r["kind"] == kind]
            if points:
                axis.plot(*zip(*points, strict=True), color=color, label=kind)
        axis.set(title=name.replace("_", " "), xlabel="step", yscale="log")
        axis.legend(frameon=False)
    return figure_png(figure)


def success_bars(rates: Mapping[str, tuple[float, float, float]]) -> bytes:
    """Success rates with their intervals: name -> (rate, low, high)."""
    figure, axis = plt.subplots(figsize=(7, 0.45 * len(rates) + 0.7), constrained_layout=True)
    for row, (rate, low, high) in enumerate(rates.values()):
        axis.barh(row, rate, color=ACCENT if row == 0 else MUTED, height=0.6)
        axis.plot([low, high], [row, row], color="black", lw=1.5)
    axis.set(yticks=range(len(rates)), yticklabels=list(rates), xlim=(0, 1), xlabel="success rate")
    axis.invert_yaxis()
    return figure_png(figure)


def action_errors(errors: Mapping[str, Float[np.ndarray, "horizon a"]]) -> bytes:
    """Mean absolute error over steps ahead, of each method."""
    figure, axis = plt.subplots(figsize=(6, 2.8), constrained_layout=True)
    for (name, error), color in zip(errors.items(), (ACCENT, SECOND, MUTED), strict=True):
        axis.plot(range(1, len(error) + 1), error.mean(1), color=color, label=name)
    axis.set(xlabel="steps ahead", ylabel="mean absolute error", ylim=(0, None))
    axis.legend(frameon=False)
    return figure_png(figure)


def action_chunks(
    predicted: Float[np.ndarray, "n horizon a"],
    true: Float[np.ndarray, "n horizon a"],
    names: Sequence[str],
) -> bytes:
    """Predicted against recorded actions: a row per sample, a column per dimension.

    NaN stands for steps that were not recorded.
    """
    n, _, dims = predicted.shape
    figure, axes = plt.subplots(
        n, dims, figsize=(2.2 * dims, 1.5 * n), sharex=True, squeeze=False, constrained_layout=True
    )
    for i in range(n):
        for d in range(dims):
            axes[i, d].plot(true[i, :, d], color=MUTED, label="recorded")
            axes[i, d].plot(predicted[i, :, d], color=ACCENT, label="predicted")
            low, high = np.nanmin(true[:, :, d]), np.nanmax(true[:, :, d])
            margin = 0.1 * (high - low) + 0.1
            axes[i, d].set_ylim(low - margin, high + margin)
            if i == 0:
                axes[i, d].set_title(names[d], fontsize=9)
    axes[0, 0].legend(frameon=False, fontsize=7)
    return figure_png(figure)


def film_strip(frames: UInt8[np.ndarray, "t h w 3"], count: int = 10) -> bytes:
    """Some frames of an episode side by side, first and last included."""
    chosen = frames[np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(int)]
    return image_png(np.concatenate(list(chosen), axis=1))


def overlay(
    image: UInt8[np.ndarray, "h w 3"], weight: Float[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "h w 3"]:
    """An image with a coarse map over it, brightest where the map is largest."""
    height, width, _ = image.shape
    scaled = weight / max(weight.max(), 1e-12)
    shown = Image.fromarray((255 * scaled).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    heat = np.asarray(shown, np.float32)[..., None] / 255
    color = np.array([255, 215, 0], np.float32)
    return (image * (0.55 + 0.1 * heat) + color * 0.45 * heat**2).clip(0, 255).astype(np.uint8)
