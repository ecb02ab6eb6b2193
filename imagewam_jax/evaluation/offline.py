"""How well a policy predicts held-out demonstrations: its actions, and the image it imagines.

Errors of actions are absolute, in the dataset's own units, and are compared with those of two
guesses that need no model. The error of the imagined latent is compared with that of the current
one, taken for a prediction.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int64, UInt8
from tqdm import trange

from imagewam_jax.data.datasets import Dataset
from imagewam_jax.data.loading.samples import SampleReader, empty_batch
from imagewam_jax.errors import DataError
from imagewam_jax.evaluation.episode_means import EpisodeMeans
from imagewam_jax.policy.policy import Policy
from imagewam_jax.preprocess.inputs import Observations

POLICY, LAST_ACTION, MEAN_ACTION = "policy", "repeat the last action", "mean action"
MAX_SAMPLES = 512
CURRENT, TARGET = 0, 1  # the moments of a sample's images


class OfflineResult(NamedTuple):
    """Errors on held-out samples.

    action_error: method -> absolute error per step ahead and dimension of the dataset's actions;
        steps ahead that no sample has, where all episodes are shorter, have no mean.
    imagined_error, copied_error: mean squared error of a target latent.
    left_out: samples with an image that cannot be read.
    """

    action_error: dict[str, EpisodeMeans]
    imagined_error: EpisodeMeans
    copied_error: EpisodeMeans
    samples: int
    left_out: int = 0

    def summary(self) -> dict:
        """The errors as numbers and lists for JSON, each with half of its 95 % interval."""
        by_dim = {name: error.mean((0,)) for name, error in self.action_error.items()}
        by_step = {name: error.mean((1,)) for name, error in self.action_error.items()}
        latents = {"imagined": self.imagined_error.mean(), "copied": self.copied_error.mean()}
        return {
            "samples": self.samples,
            "episodes": self.imagined_error.episodes,
            "left_out": self.left_out,
            "action_error": {name: _numbers(mean.value) for name, mean in by_dim.items()},
            "action_error_interval": {
                name: _numbers(mean.half_width) for name, mean in by_dim.items()
            },
            "action_error_by_step": {name: _numbers(mean.value) for name, mean in by_step.items()},
            "action_error_by_step_interval": {
                name: _numbers(mean.half_width) for name, mean in by_step.items()
            },
            **{f"{name}_latent_error": _number(mean.value) for name, mean in latents.items()},
            **{
                f"{name}_latent_error_interval": _number(mean.half_width)
                for name, mean in latents.items()
            },
        }


class Predictions(NamedTuple):
    """What a policy predicted for some samples, and what was recorded.

    Actions have the dimensions of the dataset, which can be fewer than the policy's.
    """

    actions: Float[np.ndarray, "n horizon a"]
    true_actions: Float[np.ndarray, "n horizon a"]
    is_pad: Bool[np.ndarray, "n horizon"]
    imagined: Float[np.ndarray, "n rows columns c"]
    true_latent: Float[np.ndarray, "n rows columns c"]
    current_latent: Float[np.ndarray, "n rows columns c"]


def evaluation_frames(dataset: Dataset, split: str) -> Int64[np.ndarray, " samples"]:
    """The frames at which the samples of an evaluation start.

    Those without a last action, at the start of an episode or after one that is not finite, are
    left out, unless there are no others. DataError: the split has no samples.
    """
    frames = dataset.start_frames(split)
    later = frames[_have_last_action(dataset, split, frames)]
    return later if len(later) else frames


def _have_last_action(
    dataset: Dataset, split: str, frames: Int64[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    index, standardized, _ = dataset.select(split)
    is_first = frames == index.episode_start[index.frame_episode[frames]]
    return ~is_first & np.isfinite(standardized.actions[frames - 1]).all(1)


def evaluate_offline(
    policy: Policy,
    dataset: Dataset,
    split: str,
    *,
    max_samples: int | None = MAX_SAMPLES,
    batch_size: int = 64,
) -> OfflineResult:
    """Predicts samples spread evenly over a split, which start at `evaluation_frames`.

    max_samples: None takes all of them.
    BadFrameError: an image cannot be read, and `data.bad_frames` allows none.
    """
    reader = dataset.reader(split)
    skip_bad = policy.config["data"]["bad_frames"] > 0
    start_frames = evaluation_frames(dataset, split)
    have_last = _have_last_action(dataset, split, start_frames).all()
    count = len(start_frames) if max_samples is None else min(max_samples, len(start_frames))
    start_frames = start_frames[np.linspace(0, len(start_frames) - 1, count).astype(int)]
    actions_na = reader.standardized.actions
    mean_action = np.array(policy.statistics["action"]["mean"])[: actions_na.shape[1]]

    episodes, chunk = len(reader.split.episode_start) - 1, (policy.horizon, actions_na.shape[1])
    methods = [POLICY, *([LAST_ACTION] if have_last else []), MEAN_ACTION]
    errors = {name: EpisodeMeans(episodes, chunk) for name in methods}
    imagined, copied = EpisodeMeans(episodes, ()), EpisodeMeans(episodes, ())
    samples = 0
    for start in trange(0, count, batch_size, desc="held-out samples", unit="batch"):
        rows = np.arange(start, min(start + batch_size, count))
        batch, good = read_samples(reader, start_frames[rows], skip_bad)
        if not good.any():
            continue
        rows = rows[good]
        chosen = start_frames[rows]
        samples += len(chosen)
        episode_n = batch["episode"]
        p = predict(policy, dataset, batch, rows)
        guesses = {POLICY: p.actions, MEAN_ACTION: mean_action[None, None]}
        if have_last:
            guesses[LAST_ACTION] = actions_na[chosen - 1][:, None]
        valid = (~p.is_pad)[..., None].astype(float)
        for name, error in errors.items():
            error.add(episode_n, np.abs(guesses[name] - p.true_actions), valid)
        for means, latent in ((imagined, p.imagined), (copied, p.current_latent)):
            means.add(
                episode_n,
                np.square(latent - p.true_latent).mean((1, 2, 3)),
                np.ones(len(chosen)),
            )
    reader.close()
    if not samples:
        raise DataError(f"{dataset.name}: no image of the samples of {split!r} can be read")
    return OfflineResult(errors, imagined, copied, samples, count - samples)


def read_samples(
    reader: SampleReader, start_frames: Int64[np.ndarray, " n"], skip_bad: bool
) -> tuple[dict[str, np.ndarray], Bool[np.ndarray, " n"]]:
    """The batch of the samples whose images can be read, and which of all those are.

    BadFrameError: one cannot be read, and it is not to be skipped.
    """
    batch = empty_batch(len(start_frames), reader.sample)
    bad = reader.fill(batch, np.arange(len(start_frames)), start_frames)
    if bad and not skip_bad:
        raise bad[0].error
    good = ~np.isin(np.arange(len(start_frames)), [image.row for image in bad])
    return {key: values[good] for key, values in batch.items()}, good


def predict(
    policy: Policy, dataset: Dataset, batch: dict[str, np.ndarray], seeds: Sequence[int]
) -> Predictions:
    """Acts and imagines on recorded samples; each sample's noise comes from its own seed."""
    observations = recorded_observations(policy, dataset, batch)
    dims = len(dataset.spec.action.dims)
    noise = sample_noise(seeds, (policy.horizon, policy.action_dim))
    target_noise = sample_noise(seeds, policy.latent_shape(observations.images)[1:])
    return Predictions(
        actions=policy.act(observations, noise)[..., :dims],
        true_actions=batch["actions"][..., :dims],
        is_pad=batch["action_is_pad"],
        imagined=policy.imagine(observations, target_noise),
        true_latent=policy.encode(*stored_images(batch, TARGET)),
        current_latent=policy.encode(*stored_images(batch, CURRENT)),
    )


def recorded_observations(
    policy: Policy, dataset: Dataset, batch: dict[str, np.ndarray]
) -> Observations:
    """Turns the current moment of recorded samples into what a policy acts on."""
    instructions = [dataset.instructions[row] for row in batch["text_id"]]
    images, image_size = stored_images(batch, CURRENT)
    return Observations(images, batch["proprio"], policy.text_ids(instructions), image_size)


def stored_images(
    batch: dict[str, np.ndarray], moment: int
) -> tuple[UInt8[np.ndarray, "n camera h w 3"], Int[np.ndarray, "n camera 2"] | None]:
    """The images of a batch at one moment, in their buffer, and their sizes unless all fill it."""
    images, sizes = batch["images"][:, :, moment], batch["image_size"]
    return images, None if (sizes == images.shape[2:4]).all() else sizes


def sample_noise(seeds: Sequence, shape: tuple[int, ...]) -> Float[np.ndarray, "n ..."]:
    """Draws standard normal noise that depends on each sample's own seed, not on its batch."""
    rows = [np.random.default_rng(seed).standard_normal(shape, np.float32) for seed in seeds]
    return np.stack(rows)


def _numbers(values: Float[np.ndarray, " n"]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float | np.ndarray) -> float | None:
    """A number as JSON has it, where one that is not finite is null."""
    return float(value) if math.isfinite(value) else None
