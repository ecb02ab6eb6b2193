"""The sections of a page about a trained policy, and the pictures in them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from imagewam_jax.evaluation.closed_loop import (
    Success,
    mean_of_suites,
    success_by_suite,
    success_by_task,
)
from imagewam_jax.evaluation.episode_means import EpisodeMeans
from imagewam_jax.evaluation.films import film_strips, videos
from imagewam_jax.evaluation.offline import OfflineResult, Predictions
from imagewam_jax.evaluation.rollout import RolloutResult
from imagewam_jax.evaluation.simulators.base import SimulatorSpec
from imagewam_jax.html.page import (
    ACCENT,
    MUTED,
    SECOND,
    Link,
    Section,
    figure_png,
    image_grid,
    picture,
)


class Pictures(NamedTuple):
    """The images of some samples, all of the size in which the policy sees them.

    current: what the policy saw: one mosaic, or each camera.
    future, reconstructed, imagined: the first of them (or the mosaic) at the end of the chunk: as
        recorded, the same through the autoencoder, and as the policy imagined it.
    attention: shares of the cells of the first current image, averaged over layers.
    """

    current: UInt8[np.ndarray, "n reference h w 3"]
    future: UInt8[np.ndarray, "n h w 3"]
    reconstructed: UInt8[np.ndarray, "n h w 3"]
    imagined: UInt8[np.ndarray, "n h w 3"]
    attention: Float[np.ndarray, "n rows columns"]


def success_section(success: Mapping[str, Success]) -> Section:
    """How often each policy variant succeeded."""
    rows = [("policy variant", "successes", "rate", "95 % interval")]
    rows += [
        (
            name,
            f"{s.successes} / {s.episodes}",
            f"{s.successes / s.episodes:.0%}",
            f"{s.low:.0%} - {s.high:.0%}",
        )
        for name, s in success.items()
    ]
    rates = {name: (s.successes / s.episodes, s.low, s.high) for name, s in success.items()}
    return Section(
        "Success in the simulator",
        "All variants play the same episodes, from start states that no demonstration has. "
        "Intervals are Wilson's.",
        rows,
        [picture(success_bars(rates))],
    )


def delay_sections(
    success: Mapping[str, Success], rollouts: Mapping[str, RolloutResult]
) -> list[Section]:
    """How a policy does that is late, beside itself without a delay; none where none was played."""
    late = [name for name, rollout in rollouts.items() if rollout.seam is not None]
    if not late:
        return []
    rows = [("policy variant", "successes", "steps to success", "prefix", "jump")]
    for name in (next(iter(rollouts)), *late):
        s, rollout = success[name], rollouts[name]
        steps, seam = rollout.steps_to_success, rollout.seam or {}
        numbers = [(steps, "{:.0f}"), *((seam.get(n), "{:.3f}") for n in ("difference", "jump"))]
        shown = ["" if x is None else form.format(x) for x, form in numbers]
        rows.append((name, f"{s.successes} / {s.episodes}", *shown))
    text = (
        "The robot goes on with its chunk while the next one is computed. Prefix: how far the "
        "first actions of the next one are from those that are executed in the meantime. Jump: "
        "how far its first executed action is from the action before. Means of absolute "
        "differences, in normalized units."
    )
    return [Section("Chunks that arrive late", text, rows)]


def task_section(results: Mapping[str, RolloutResult], spec: SimulatorSpec) -> Section:
    """How often each policy variant succeeded in each suite, and in each task of it."""
    tasks = {name: success_by_task(result) for name, result in results.items()}
    suites = {name: success_by_suite(result, spec) for name, result in results.items()}
    rows = [("task", *results)]
    for suite, of_suite in spec.suites.items():
        for counted, names in ((suites, (suite,)), (tasks, of_suite)):
            rows += [
                (name, *(f"{c[name].successes} / {c[name].episodes}" for c in counted.values()))
                for name in names
                if all(name in c for c in counted.values())
            ]
    text = "Suites count the episodes of all their tasks."
    if any(len(found) > 1 for found in suites.values()):
        means = {name: mean_of_suites(found) for name, found in suites.items()}
        rows.append(("mean of suites", *(f"{m:.1%} ± {e:.1%}" for m, e in means.values())))
        text += " Their mean is given with its standard error."
    return Section("Success by task", text if any(suites.values()) else "", rows)


def episode_section(
    results: Mapping[str, RolloutResult], instructions: Mapping[str, str], films: Path
) -> Section:
    """Film strips of what the policy saw, from the folder of `films.Films`."""
    pictures = []
    for name, result in results.items():
        for episode, strip in film_strips(films, name).items():
            task, _ = result.episodes[episode]
            outcome = "success" if result.success[episode] else "no success"
            caption = f"{name}: task '{instructions[task]}', {outcome} in {result.steps[episode]}"
            pictures.append(picture(strip, f"{caption} steps"))
    return Section("Episodes", pictures=pictures)


def video_section(results: Mapping[str, RolloutResult], films: Path, page: Path) -> Section:
    """Links to the videos in the folder of `films.Films`, from a page in the folder `page`."""
    found: dict[tuple[str, str], dict[str, Link]] = {}
    for name, result in results.items():
        for episode, path in videos(films, name).items():
            task, seed = result.episodes[episode]
            outcome = "success" if result.success[episode] else "failure"
            link = Link(quote(path.relative_to(page).as_posix()), f"start {seed}")
            found.setdefault((task, outcome), {})[name] = link
    rows = [("task", "first", *results)]
    rows += [
        (task, outcome, *(found[task, outcome].get(name, "") for name in results))
        for task, outcome in sorted(found)
    ]
    text = (
        "The first success and the first failure of each task, as the policy saw them whenever it "
        "planned, in the robot's time."
    )
    return Section("Videos", text, rows)


def offline_section(
    result: OfflineResult, action_names: Sequence[str], dataset: str = ""
) -> Section:
    """Errors on held-out demonstrations; `dataset` names theirs where there are several."""
    rows = [("mean absolute error", *action_names)]
    for name, error in result.action_error.items():
        rows.append((name, *(_plus_minus(*mean) for mean in zip(*error.mean((0,)), strict=True))))
    imagined, copied = result.imagined_error.mean(), result.copied_error.mean()
    unreadable = f" ({result.left_out} more cannot be read)" if result.left_out else ""
    ratio = f" (ratio {imagined.value / copied.value:.2f})" if copied.value > 0 else ""
    text = (
        f"{result.samples} held-out samples{unreadable} of {_episodes(result)}, actions in real "
        "units. Errors have half of their 95 % interval behind them, which goes by episodes. "
        f"Error of the imagined latent {_plus_minus(*imagined)}, of copying the current frame "
        f"{_plus_minus(*copied)}{ratio}."
    )
    pictures = [picture(action_errors(result.action_error))]
    return Section(_titled("Held-out demonstrations", dataset), text, rows, pictures)


def _titled(title: str, dataset: str) -> str:
    return f"{title}: {dataset}" if dataset else title


def _episodes(result: OfflineResult) -> str:
    count = result.imagined_error.episodes
    return "1 episode" if count == 1 else f"{count} episodes"


def _plus_minus(value: float, half_width: float) -> str:
    """A mean and half of its interval, where it has one: a single episode gives none."""
    return f"{value:.3f}" + ("" if np.isnan(half_width) else f" ± {half_width:.3f}")


def prediction_section(
    pictures: Pictures, predictions: Predictions, action_names: Sequence[str], dataset: str = ""
) -> Section:
    """What the policy saw, imagined, attended to and did, sample by sample; `dataset` names theirs
    where there are several."""
    rows = [
        [*current, future, reconstructed, imagined, overlay(current[0], attention)]
        for current, future, reconstructed, imagined, attention in zip(*pictures, strict=True)
    ]
    cameras = pictures.current.shape[1]
    shown = "current image" if cameras == 1 else f"current images of the {cameras} cameras"
    first = "" if cameras == 1 else " of the first camera"
    # Nothing was recorded beyond an episode's end: a line that went on would look like an error.
    recorded = np.where(predictions.is_pad[..., None], np.nan, predictions.true_actions)
    chunks = action_chunks(predictions.actions, recorded, action_names)
    return Section(
        _titled("Predictions", dataset),
        pictures=[
            picture(
                image_grid(rows),
                f"Columns: {shown}; true image{first} at the end of the chunk; the same through "
                "the autoencoder, which is the best that can be imagined; the imagined image; "
                f"where the action stream attends in the current image{first}",
            ),
            picture(chunks, "Predicted and recorded action chunks of the same samples"),
        ],
    )


def training_section(rows: Sequence[Mapping]) -> Section:
    """The losses of the run that trained the policy, from the rows of its metrics file."""
    return Section("Training", pictures=[picture(training_curves(rows))])


def training_curves(rows: Sequence[Mapping]) -> bytes:
    """Plots the losses of both streams over steps, on training and on held-out samples."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), constrained_layout=True)
    for axis, name in zip(axes, ("target_loss", "action_loss"), strict=True):
        for kind, color in (("train", MUTED), ("validation", ACCENT)):
            points = [(r["step"], r[name]) for r in rows if r["kind"] == kind and r.get(name)]
            if points:
                axis.plot(*zip(*points, strict=True), color=color, label=kind)
        axis.set(title=name.replace("_", " "), xlabel="step", yscale="log")
        axis.legend(frameon=False)
    return figure_png(figure)


def success_bars(rates: Mapping[str, tuple[float, float, float]]) -> bytes:
    """Plots success rates with their intervals: name -> (rate, low, high)."""
    figure, axis = plt.subplots(figsize=(7, 0.45 * len(rates) + 0.7), constrained_layout=True)
    for row, (rate, low, high) in enumerate(rates.values()):
        axis.barh(row, rate, color=ACCENT if row == 0 else MUTED, height=0.6)
        axis.plot([low, high], [row, row], color="black", lw=1.5)
    axis.set(yticks=range(len(rates)), yticklabels=list(rates), xlim=(0, 1), xlabel="success rate")
    axis.invert_yaxis()
    return figure_png(figure)


def action_errors(errors: Mapping[str, EpisodeMeans]) -> bytes:
    """Plots the mean absolute error of each method over the steps ahead, with its interval."""
    figure, axis = plt.subplots(figsize=(6, 2.8), constrained_layout=True)
    for (name, error), color in zip(errors.items(), (ACCENT, SECOND, MUTED), strict=False):
        mean, half_width = error.mean((1,))
        steps = np.arange(1, len(mean) + 1)
        axis.plot(steps, mean, color=color, label=name)
        axis.fill_between(
            steps, mean - half_width, mean + half_width, color=color, alpha=0.15, lw=0
        )
    axis.set(xlabel="steps ahead", ylabel="mean absolute error", ylim=(0, None))
    axis.legend(frameon=False)
    return figure_png(figure)


def action_chunks(
    predicted: Float[np.ndarray, "n horizon a"],
    true: Float[np.ndarray, "n horizon a"],
    names: Sequence[str],
) -> bytes:
    """Plots predicted and recorded actions: a row per sample, a column per dimension.

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


def overlay(
    image: UInt8[np.ndarray, "h w 3"], weight: Float[np.ndarray, "rows columns"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays a coarse map over an image, brightest where the map is largest."""
    height, width, _ = image.shape
    scaled = weight / max(weight.max(), 1e-12)
    shown = Image.fromarray((255 * scaled).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    heat = np.asarray(shown, np.float32)[..., None] / 255
    color = np.array([255, 215, 0], np.float32)
    return (image * (0.55 + 0.1 * heat) + color * 0.45 * heat**2).clip(0, 255).astype(np.uint8)
