"""The sections of a page about a trained policy: numbers first, then pictures."""

from collections.abc import Mapping, Sequence

import numpy as np

from imagewam_jax.evaluation import figures
from imagewam_jax.evaluation.closed_loop import POLICY, SWAPPED, Success
from imagewam_jax.evaluation.offline import OfflineResult, Predictions
from imagewam_jax.evaluation.rollout import RolloutResult
from imagewam_jax.html.page import Section, picture
from imagewam_jax.html.pictures import image_grid
from imagewam_jax.models.autoencoders import to_uint8
from imagewam_jax.policy.policy import Policy


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
        [picture(figures.success_bars(rates))],
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
            pictures.append(picture(figures.film_strip(frames[:, 0]), f"{caption} steps"))
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
    pictures = [picture(figures.action_errors(result.action_error))]
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
            picture(
                image_grid(rows),
                "Columns: current image; true image at the end of the chunk; the same through "
                "the autoencoder, which is the best that can be imagined; the imagined image; "
                "where the action stream attends in the current image",
            ),
            picture(chunks, "Predicted and recorded action chunks of the same samples"),
        ],
    )


def training_section(rows: Sequence[Mapping]) -> Section:
    return Section("Training", pictures=[picture(figures.training_curves(rows))])
