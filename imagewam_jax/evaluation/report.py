"""A self-contained HTML page about a trained policy: numbers first, then pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np

from imagewam_jax.evaluation import figures
from imagewam_jax.evaluation.closed_loop import POLICY, SWAPPED, Success
from imagewam_jax.evaluation.offline import OfflineResult, Predictions
from imagewam_jax.evaluation.rollout import RolloutResult
from imagewam_jax.models.autoencoders import to_uint8
from imagewam_jax.policies.policy import Policy


class Picture(NamedTuple):
    uri: str
    caption: str = ""


class Section(NamedTuple):
    """One heading of the page; the first row of a table is its header."""

    title: str
    text: str = ""
    table: Sequence[Sequence[str]] = ()
    pictures: Sequence[Picture] = ()


def write_report(path: Path, title: str, subtitle: str, sections: Sequence[Section]) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("imagewam_jax", "evaluation"), autoescape=True
    )
    page = environment.get_template("report.html")
    path.write_text(page.render(title=title, subtitle=subtitle, sections=sections))


def success_section(success: Mapping[str, Success]) -> Section:
    """How often each way to act succeeded."""
    rows = [("way to act", "successes", "rate", "95 % interval")]
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
        "All ways play the same episodes, from start states that no demonstration has. Intervals "
        "are Wilson's.",
        rows,
        [_picture(figures.success_bars(rates))],
    )


def episode_section(results: Mapping[str, RolloutResult], instructions: Mapping[str, str]):
    """Film strips of what the policy saw."""
    pictures = []
    for name in (POLICY, SWAPPED):
        result = results[name]
        for episode, frames in result.frames.items():
            task, _ = result.episodes[episode]
            outcome = "success" if result.success[episode] else "no success"
            caption = f"{name}: task '{instructions[task]}', {outcome} in {result.steps[episode]}"
            pictures.append(_picture(figures.film_strip(frames[:, 0]), f"{caption} steps"))
    return Section("Episodes", pictures=pictures)


def offline_section(result: OfflineResult, action_names: Sequence[str]) -> Section:
    """Errors on held-out demonstrations."""
    rows = [("mean absolute error", *action_names)]
    rows += [
        (name, *(f"{x:.3f}" for x in error.mean(0))) for name, error in result.action_error.items()
    ]
    imagined, copied = result.imagined_error_n.mean(), result.copied_error_n.mean()
    text = (
        f"{len(result.imagined_error_n)} held-out samples, actions in real units. Error of the "
        f"imagined latent {imagined:.3f}, of copying the current frame {copied:.3f} "
        f"(ratio {imagined / copied:.2f})."
    )
    pictures = [_picture(figures.action_errors(result.action_error))]
    return Section("Held-out demonstrations", text, rows, pictures)


def prediction_section(
    policy: Policy, predictions: Predictions, looks: np.ndarray, action_names: Sequence[str]
) -> Section:
    """What the policy imagined, did and looked at, sample by sample.

    looks: its attention on the reference [n, layer, rows, columns].
    """
    imagined = np.asarray(to_uint8(policy.decode(predictions.imagined)))
    limit = np.asarray(to_uint8(policy.decode(predictions.true_latent)))
    rows = []
    for i, pair in enumerate(predictions.images[:, 0]):
        seen = figures.overlay(pair[0], looks[i].mean(0))
        rows.append([pair[0], pair[1], limit[i], imagined[i], seen])
    # Beyond an episode's end nothing was recorded: a line that goes on would look like a miss.
    recorded = np.where(predictions.is_pad[..., None], np.nan, predictions.true_actions)
    chunks = figures.action_chunks(predictions.actions, recorded, action_names)
    return Section(
        "Predictions",
        pictures=[
            _picture(
                figures.image_grid(rows),
                "Columns: current image; true image at the end of the chunk; the same through "
                "the autoencoder, which is the best that can be imagined; the imagined image; "
                "where the action stream attends in the current image",
            ),
            _picture(chunks, "Predicted and recorded action chunks of the same samples"),
        ],
    )


def training_section(rows: Sequence[Mapping]) -> Section:
    return Section("Training", pictures=[_picture(figures.training_curves(rows))])


def _picture(png: bytes, caption: str = "") -> Picture:
    return Picture(figures.data_uri(png), caption)
