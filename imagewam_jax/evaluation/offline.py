"""How well a policy predicts held-out demonstrations: its actions, and the image it imagines.

Errors of actions are absolute, in the dataset's own units, and are compared with those of two
guesses that need no model. The error of the imagined latent is compared with that of the current
one, taken for a prediction.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from tqdm import tqdm

from imagewam_jax.data.datasets import Dataset
from imagewam_jax.errors import DataError
from imagewam_jax.policy.policy import Policy
from imagewam_jax.preprocess.inputs import Observations

POLICY, LAST_ACTION, MEAN_ACTION = "policy", "repeat the last action", "mean action"


class OfflineResult(NamedTuple):
    """Errors on held-out samples.

    action_error: method -> mean absolute error per step ahead and dimension.
    imagined_error_n, copied_error_n: mean squared error of each sample's target latent.
    """

    action_error: dict[str, Float[np.ndarray, "horizon a"]]
    imagined_error_n: Float[np.ndarray, " n"]
    copied_error_n: Float[np.ndarray, " n"]

    def summary(self) -> dict:
        """The errors as numbers and lists, for JSON."""
        return {
            "samples": len(self.imagined_error_n),
            "action_error": {k: v.mean(0).tolist() for k, v in self.action_error.items()},
            "action_error_by_step": {k: v.mean(1).tolist() for k, v in self.action_error.items()},
            "imagined_latent_error": float(self.imagined_error_n.mean()),
            "copied_latent_error": float(self.copied_error_n.mean()),
        }


class Predictions(NamedTuple):
    """What a policy predicted for some samples, and what was recorded."""

    images: np.ndarray  # uint8 [n, camera, 2, h, w, 3]: current and target
    actions: Float[np.ndarray, "n horizon a"]
    true_actions: Float[np.ndarray, "n horizon a"]
    is_pad: Bool[np.ndarray, "n horizon"]
    imagined: Float[np.ndarray, "n rows columns c"]
    true_latent: Float[np.ndarray, "n rows columns c"]
    current_latent: Float[np.ndarray, "n rows columns c"]


def evaluate_offline(
    policy: Policy, dataset: Dataset, split: str, *, max_samples: int = 512, batch_size: int = 64
) -> OfflineResult:
    """Predicts samples spread evenly over a split.

    Samples at the start of an episode are left out: they have no last action. So are those whose
    last action is not finite.
    """
    reader = dataset.reader(split)
    start_frames = dataset.start_frames(split)
    start_frames = start_frames[
        start_frames != reader.split.episode_start[reader.split.frame_episode[start_frames]]
    ]
    start_frames = start_frames[np.isfinite(reader.standardized.actions[start_frames - 1]).all(1)]
    spread = np.linspace(0, len(start_frames) - 1, min(max_samples, len(start_frames))).astype(int)
    start_frames = start_frames[spread]
    actions_na = _widened(reader.standardized.actions, policy.action_dim)
    statistics = policy.metadata["statistics"][policy.dataset]
    mean_action = _widened(np.array(statistics["action"]["mean"])[None], policy.action_dim)[0]

    errors: dict[str, list[np.ndarray]] = {POLICY: [], LAST_ACTION: [], MEAN_ACTION: []}
    valid, imagined, copied = [], [], []
    starts = range(0, len(start_frames), batch_size)
    for start in tqdm(starts, desc="held-out samples", unit="batch"):
        chosen = start_frames[start : start + batch_size]
        p = predict(policy, dataset, reader.read(chosen), np.arange(start, start + len(chosen)))
        guesses = {
            POLICY: p.actions,
            LAST_ACTION: actions_na[chosen - 1][:, None],
            MEAN_ACTION: mean_action[None, None],
        }
        for name, guess in guesses.items():
            errors[name].append(np.abs(guess - p.true_actions))
        valid.append(~p.is_pad)
        imagined.append(np.square(p.imagined - p.true_latent).mean((1, 2, 3)))
        copied.append(np.square(p.current_latent - p.true_latent).mean((1, 2, 3)))
    reader.close()
    weight = np.concatenate(valid)[..., None]
    return OfflineResult(
        {
            name: (np.concatenate(e) * weight).sum(0) / weight.sum(0).clip(1)
            for name, e in errors.items()
        },
        np.concatenate(imagined),
        np.concatenate(copied),
    )


def _widened(actions_na: np.ndarray, width: int) -> np.ndarray:
    """Appends zeros for the dimensions that only other datasets have, as in batches."""
    return np.pad(actions_na, ((0, 0), (0, width - actions_na.shape[1])))


def predict(
    policy: Policy, dataset: Dataset, batch: dict[str, np.ndarray], seeds: Sequence[int]
) -> Predictions:
    """Acts and imagines on recorded samples; each sample's noise comes from its own seed."""
    observations = recorded_observations(policy, dataset, batch)
    current, target = (stored_images(batch, moment) for moment in (0, 1))
    noise = sample_noise(seeds, (policy.horizon, policy.action_dim))
    target_noise = sample_noise(seeds, policy.latent_shape(current)[1:])
    return Predictions(
        images=batch["images"],
        actions=policy.act(observations, noise),
        true_actions=batch["actions"],
        is_pad=batch["action_is_pad"],
        imagined=policy.imagine(observations, target_noise),
        true_latent=policy.encode(target),
        current_latent=policy.encode(current),
    )


def recorded_observations(
    policy: Policy, dataset: Dataset, batch: dict[str, np.ndarray]
) -> Observations:
    """Turns the current moment of recorded samples into what a policy acts on."""
    instructions = [dataset.instructions[row] for row in batch["text_id"]]
    return Observations(stored_images(batch, 0), batch["proprio"], policy.text_ids(instructions))


def stored_images(batch: dict[str, np.ndarray], moment: int) -> UInt8[np.ndarray, "n camera h w 3"]:
    """Cuts the images of a batch at its current (0) or target (1) moment out of their buffer.

    DataError: they are of several sizes.
    """
    sizes = np.unique(batch["image_size"].reshape(-1, 2), axis=0)
    if len(sizes) > 1:
        raise DataError(f"evaluation needs images of one size, these are of {sizes.tolist()}")
    height, width = sizes[0]
    return batch["images"][:, :, moment, :height, :width]


def sample_noise(seeds: Sequence, shape: tuple[int, ...]) -> Float[np.ndarray, "n ..."]:
    """Draws standard normal noise that depends on each sample's own seed, not on its batch."""
    rows = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds]
    return np.stack(rows)
