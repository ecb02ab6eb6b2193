"""How well a policy predicts held-out demonstrations: its actions, and the image it imagines.

Errors of actions are absolute, in the dataset's own units, and are compared with those of two
guesses that need no model. The error of the imagined latent is compared with that of the current
one, taken for a prediction.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64, UInt8
from tqdm import tqdm

from imagewam_jax.data.datasets import Dataset
from imagewam_jax.data.loading.samples import Batch, SampleReader, empty_batch
from imagewam_jax.distributed import from_each, is_first
from imagewam_jax.errors import DataError
from imagewam_jax.evaluation.episode_means import EpisodeMeans
from imagewam_jax.evaluation.snapshot import Snapshot
from imagewam_jax.policy.noise import sample_noise
from imagewam_jax.policy.policy import Policy
from imagewam_jax.preprocess.inputs import Observations

POLICY, LAST_ACTION, MEAN_ACTION = "policy", "repeat the last action", "mean action"
MAX_SAMPLES = 512
BATCH_SIZE = 64
CURRENT, TARGET = 0, 1  # the moments of a sample's images

T = TypeVar("T")


class SampleErrors(NamedTuple):
    """Errors of some samples. `is_good` is false for one with an image that cannot be read."""

    action: dict[str, Float32[np.ndarray, "n horizon a"]]
    is_pad: Bool[np.ndarray, "n horizon"]
    imagined: Float32[np.ndarray, " n"]
    copied: Float32[np.ndarray, " n"]
    is_good: Bool[np.ndarray, " n"]


@dataclasses.dataclass(frozen=True)
class OfflineResult:
    """Errors on held-out samples.

    action_error: method -> absolute error per step ahead and dimension of the dataset's actions;
        steps ahead that no sample has, where all episodes are shorter, have no mean.
    imagined_error, copied_error: mean squared error of a target latent.
    counts: samples, and those left out, since an image of theirs cannot be read.
    """

    action_error: dict[str, EpisodeMeans]
    imagined_error: EpisodeMeans
    copied_error: EpisodeMeans
    counts: Int64[np.ndarray, "2"]

    @property
    def samples(self) -> int:
        return int(self.counts[0])

    @property
    def left_out(self) -> int:
        return int(self.counts[1])

    def add(self, errors: SampleErrors, episode_n: Int[np.ndarray, " n"]) -> None:
        """Adds samples of these episodes, which are numbered as those of the means."""
        good = errors.is_good
        self.counts[:] += good.sum(), (~good).sum()
        valid = (~errors.is_pad[good])[..., None].astype(float)
        for name, mean in self.action_error.items():
            mean.add(episode_n[good], errors.action[name][good], valid)
        for mean, error in (
            (self.imagined_error, errors.imagined),
            (self.copied_error, errors.copied),
        ):
            mean.add(episode_n[good], error[good], np.ones(good.sum()))

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays, by name: what they hold is the result."""
        means = {"imagined": self.imagined_error, "copied": self.copied_error}
        means |= {f"action, {name}": mean for name, mean in self.action_error.items()}
        found = {f"total of {name}": mean.total for name, mean in means.items()}
        found |= {f"weight of {name}": mean.weight for name, mean in means.items()}
        return {"counts": self.counts, **found}

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


def chosen_frames(
    frames: Int64[np.ndarray, " samples"], most: int | None
) -> Int64[np.ndarray, " chosen"]:
    """At most so many of the `evaluation_frames`, spread evenly over them; None takes all."""
    count = len(frames) if most is None else min(most, len(frames))
    return frames[np.linspace(0, len(frames) - 1, count).astype(int)]


def evaluate_offline(
    policy: Policy,
    dataset: Dataset,
    split: str,
    frames: Int64[np.ndarray, " samples"],
    *,
    batch_size: int = BATCH_SIZE,
    snapshot: Snapshot | None = None,
) -> OfflineResult:
    """Predicts the samples of a split that start at `frames`, such as `chosen_frames`.

    The hosts of the policy's mesh share the samples of each batch, and all of them return the
    result, which depends on mesh and hosts no more than the last bits of a prediction do.

    batch_size: how many are predicted at once, over all hosts; rounded up to what divides evenly.
    snapshot: sums of an interrupted evaluation, from which this one resumes; its own are saved
        there.
    BadFrameError: an image cannot be read, and `data.bad_frames` allows none.
    """
    section = policy.config["data"]
    count, batch_size = len(frames), policy.placement.whole_batch(batch_size)
    rows_here = policy.placement.rows_here(batch_size)
    of_row = _places_of_rows(rows_here)
    have_last = _have_last_action(dataset, split, frames).all()
    episodes, episode_n = np.unique(
        dataset.select(split).split.frame_episode[frames], return_inverse=True
    )
    methods = [POLICY, *([LAST_ACTION] if have_last else []), MEAN_ACTION]
    chunk = (policy.horizon, len(dataset.spec.action.dims))
    result = OfflineResult(
        {name: EpisodeMeans(len(episodes), chunk) for name in methods},
        imagined_error=EpisodeMeans(len(episodes), ()),
        copied_error=EpisodeMeans(len(episodes), ()),
        counts=np.zeros(2, np.int64),
    )
    done = snapshot.restore(result.arrays()) if snapshot else 0
    starts = range(done, count, batch_size)

    def numbers_here(start: int) -> Int64[np.ndarray, " n"]:
        """The samples that this host predicts: behind the last one, the last one again."""
        return np.minimum(start + rows_here, count - 1)

    with (
        contextlib.closing(dataset.reader(split)) as reader,
        tqdm(
            total=count,
            initial=done,
            desc=f"held-out samples of {dataset.name}",
            unit="sample",
            disable=not is_first(),
        ) as progress,
    ):
        actions_na = reader.standardized.actions
        mean_action = np.array(policy.statistics["action"]["mean"])[: actions_na.shape[1]]

        def read(start: int) -> tuple[Batch, Bool[np.ndarray, " n"]]:
            return read_samples(reader, frames[numbers_here(start)], section["bad_frames"] > 0)

        batches = read_ahead(read, starts, section["threads"])
        for start, (batch, is_good) in zip(starts, batches, strict=True):
            numbers = numbers_here(start)
            guesses = {MEAN_ACTION: mean_action[None, None]}
            if have_last:
                guesses[LAST_ACTION] = actions_na[frames[numbers] - 1][:, None]
            predictions = predict(policy, dataset, batch, numbers)
            errors = _all_rows(_sample_errors(predictions, guesses, is_good), of_row)
            stop = min(start + batch_size, count)
            errors = jax.tree.map(lambda x, n=stop - start: x[:n], errors)
            result.add(errors, episode_n[start:stop])
            progress.update(stop - start)
            if snapshot:
                snapshot.save(result.arrays(), stop)
    if snapshot:
        snapshot.save(result.arrays(), count, at_once=True)
    if not result.samples:
        raise DataError(f"{dataset.name}: no image of the samples of {split!r} can be read")
    return result


def read_samples(
    reader: SampleReader, start_frames: Int64[np.ndarray, " n"], skip_bad: bool
) -> tuple[Batch, Bool[np.ndarray, " n"]]:
    """The batch of some samples, and those whose images can all be read; others are grey.

    BadFrameError: one cannot be read, and it is not to be skipped.
    """
    batch = empty_batch(len(start_frames), reader.sample)
    bad = reader.fill(batch, np.arange(len(start_frames)), start_frames)
    if bad and not skip_bad:
        raise bad[0].error
    return batch, ~np.isin(np.arange(len(start_frames)), [image.row for image in bad])


def read_ahead(read: Callable[[int], T], numbers: Iterable[int], threads: int) -> Iterator[T]:
    """What `read` makes of each number, in order, while threads read the next ones."""
    waiting: collections.deque[Future] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for number in numbers:
                waiting.append(pool.submit(read, number))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


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


def _sample_errors(
    p: Predictions, guesses: Mapping[str, Float[np.ndarray, "..."]], is_good: Bool[np.ndarray, " n"]
) -> SampleErrors:
    """The errors of predictions, and of guesses of their actions."""

    def latent_error(guess: Float[np.ndarray, "n h w c"]) -> Float32[np.ndarray, " n"]:
        return np.square(guess - p.true_latent).mean((1, 2, 3), dtype=np.float32)

    return SampleErrors(
        {
            name: np.abs(guess - p.true_actions).astype(np.float32)
            for name, guess in {POLICY: p.actions, **guesses}.items()
        },
        p.is_pad,
        latent_error(p.imagined),
        latent_error(p.current_latent),
        is_good,
    )


def _places_of_rows(rows_here: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " rows"]:
    """Where each row of a batch is among those that all hosts hold, one host's after another's."""
    rows = from_each(rows_here.astype(np.int32)).reshape(-1)
    _, of_row = np.unique(rows, return_index=True)  # hosts can hold the same rows
    return of_row


def _all_rows(errors: SampleErrors, of_row: Int64[np.ndarray, " rows"]) -> SampleErrors:
    """The errors of a whole batch on every host, from those that each has of its rows."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[of_row], from_each(errors))


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


def _numbers(values: Float[np.ndarray, " n"]) -> list[float | None]:
    return [_number(value) for value in values]


def _number(value: float | np.ndarray) -> float | None:
    """A number as JSON has it, where one that is not finite is null."""
    return float(value) if math.isfinite(value) else None
