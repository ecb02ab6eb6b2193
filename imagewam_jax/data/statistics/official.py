"""The statistics in the official `dataset_stats.json` (docs/spec/imagewam_flux2.md, 7.6).

They differ from exact ones: actions are counted in windows of the horizon with the last one
repeated, every episode weighs the same, and the quantiles are extremes of per-episode quantiles.
Files are read and written with `read_statistics` and `write_statistics`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32
from tqdm import tqdm

from imagewam_jax.data.index.dataset_index import SplitIndex
from imagewam_jax.data.transforms.standardize import StandardizedSplit
from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.statistics import PREFIXES, STATISTICS, FieldStatistics


class Episode(NamedTuple):
    """Arrays [steps, dim] of one episode by key; the key is "default" if there is only one."""

    action: Mapping[str, Float[np.ndarray, "n _"]]
    state: Mapping[str, Float[np.ndarray, "n _"]]


def standardized_episodes(
    split: SplitIndex, standardized: StandardizedSplit, episodes: Iterable[int]
) -> Iterator[Episode]:
    """Yields standardized episodes of a split, under the key "default".

    DataError: an episode has numbers that are not finite.
    """
    for number in episodes:
        start = int(split.episode_start[number])
        steps = slice(start, start + int(standardized.episode_steps[number]))
        if (split.frame_episode[standardized.not_finite] == number).any():
            raise DataError(
                f"{split.describe_frame(start)}: numbers that are not finite are in every window; "
                'leave out such episodes with data.not_finite="drop_episodes"'
            )
        yield Episode(
            {"default": standardized.actions[steps]}, {"default": standardized.states[steps]}
        )


def official_statistics(episodes: Iterable[Episode], horizon: int) -> dict:
    """{"state": {key: ...}, "action": {key: ...}, "num_episodes", "num_transition"}.

    A key's entry has `stepwise_*` [horizon, d] (states: [1, d]) and `global_*` [d]. The global mean
    and std pool the stepwise ones of all episodes. Raises DataError for an episode of one step,
    whose unbiased variance does not exist.
    """
    summaries = _summaries(episodes, horizon)

    def field(by_key: dict[str, list[FieldStatistics]]) -> dict:
        return {
            key: _entry(_over_episodes(s), _over_episodes(s, axis=(0, 1)))
            for key, s in by_key.items()
        }

    return {
        "state": field(summaries.state),
        "action": field(summaries.action),
        "num_episodes": len(summaries.steps),
        "num_transition": sum(summaries.steps),
    }


class _Summaries(NamedTuple):
    """Per key and episode the statistics of each step of the window, and the episodes' lengths."""

    action: dict[str, list[FieldStatistics]]
    state: dict[str, list[FieldStatistics]]
    steps: list[int]


def _summaries(episodes: Iterable[Episode], horizon: int) -> _Summaries:
    summaries = _Summaries({}, {}, [])
    for number, episode in enumerate(tqdm(episodes, desc="statistics", unit="episode")):
        steps = len(next(iter(episode.action.values())))
        if steps < 2:
            raise DataError(
                f"episode {number} has {steps} step; the official statistics need its variance"
            )
        summaries.steps.append(steps)
        for out, field, length in (
            (summaries.action, episode.action, horizon),
            (summaries.state, episode.state, 1),
        ):
            for key, values in field.items():
                out.setdefault(key, []).append(_summary(_windows(values, length)))
    return summaries


def _windows(values: Float[np.ndarray, "n d"], length: int) -> Float32[np.ndarray, "n t d"]:
    """For each step the `length` values from it on; past the end the last value repeats."""
    steps = np.arange(len(values))[:, None] + np.arange(length)
    return np.asarray(values)[np.minimum(steps, len(values) - 1)]


def _summary(values: np.ndarray) -> FieldStatistics:
    """Statistics over the first axis; "var" is unbiased."""
    values = values.astype(np.float64)
    q01, q99 = np.quantile(values, (0.01, 0.99), axis=0)
    return {
        "min": values.min(axis=0),
        "max": values.max(axis=0),
        "mean": values.mean(axis=0),
        "var": values.var(axis=0, ddof=1),
        "q01": q01,
        "q99": q99,
    }


def _entry(stepwise: FieldStatistics, overall: FieldStatistics) -> dict[str, np.ndarray]:
    """One key's entry in the file."""
    halves = zip(PREFIXES, (stepwise, overall), strict=True)
    return {f"{prefix}_{name}": half[name] for prefix, half in halves for name in STATISTICS}


def _over_episodes(
    summaries: list[FieldStatistics], axis: int | tuple[int, ...] = 0
) -> FieldStatistics:
    """Combines episodes with equal weight; axis (0, 1) also combines the steps of the window."""
    stacked = {name: np.stack([s[name] for s in summaries]) for name in summaries[0]}
    mean, std = _pooled_moments(stacked["mean"], stacked["var"], axis)
    return {
        "min": stacked["min"].min(axis=axis),
        "max": stacked["max"].max(axis=axis),
        "mean": mean,
        "std": std,
        "q01": stacked["q01"].min(axis=axis),
        "q99": stacked["q99"].max(axis=axis),
    }


def _pooled_moments(
    means: np.ndarray, variances: np.ndarray, axis: int | tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std over groups of equal weight: variance within plus variance between groups."""
    mean = means.mean(axis=axis)
    return mean, np.sqrt((variances + (means - mean) ** 2).mean(axis=axis))
