"""The statistics that the official code keeps in `dataset_stats.json` (spec imagewam_flux2 7.6).

They differ from exact ones: actions are counted in windows of the horizon with the last one
repeated, every episode weighs the same, and the quantiles are extremes of per-episode quantiles.
Files are read and written with `statistics.read_statistics` and `statistics.write_statistics`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32
from tqdm import tqdm

from imagewam_jax.data.index.dataset_index import SplitIndex
from imagewam_jax.data.transforms.standardize import Standard
from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.statistics import PREFIXES, STATISTICS, FieldStatistics


class Episode(NamedTuple):
    """The arrays [steps, dim] of one episode by field key; a plain dataset's key is "default"."""

    action: Mapping[str, Float[np.ndarray, "n _"]]
    state: Mapping[str, Float[np.ndarray, "n _"]]


class DimMasks(NamedTuple):
    """The dimensions that an embodiment lacks, by field key."""

    action: Mapping[str, Bool[np.ndarray, " _"]]
    state: Mapping[str, Bool[np.ndarray, " _"]]


def standard_episodes(
    split: SplitIndex, standard: Standard, episodes: Iterable[int]
) -> Iterator[Episode]:
    """Some episodes of a split in standard form, under the key "default"."""
    for number in episodes:
        start = int(split.episode_start[number])
        steps = slice(start, start + int(standard.episode_steps[number]))
        yield Episode({"default": standard.actions[steps]}, {"default": standard.states[steps]})


def official_statistics(episodes: Iterable[Episode], horizon: int) -> dict:
    """{"state": {key: ...}, "action": {key: ...}, "num_episodes", "num_transition"}.

    A key's entry has `stepwise_*` [horizon, d] (states: [1, d]) and `global_*` [d]. Global mean and
    std pool the per-step ones of all episodes. Raises DataError for an episode of one step, whose
    unbiased variance does not exist.
    """
    summaries = _summaries(episodes, horizon)

    def field(by_key: dict[str, _FieldSummaries]) -> dict:
        return {
            key: _entry(_over_episodes(s.stepwise), _over_episodes(s.stepwise, axis=(0, 1)))
            for key, s in by_key.items()
        }

    return {
        "state": field(summaries.state),
        "action": field(summaries.action),
        "num_episodes": len(summaries.steps),
        "num_transition": sum(summaries.steps),
    }


def official_statistics_per_embodiment(
    episodes: Mapping[str, Iterable[Episode]], masks: Mapping[str, DimMasks], horizon: int
) -> dict:
    """The same for each embodiment, under "embodiments". Masked dimensions are stored as zeros.

    Here the global mean, std and quantiles are per episode over all entries of its windows, then
    combined over episodes.
    """
    summaries = {name: _summaries(group, horizon) for name, group in episodes.items()}

    def field(by_key: dict[str, _FieldSummaries], masks: Mapping[str, np.ndarray]) -> dict:
        entries = {
            key: _entry(_over_episodes(s.stepwise), _over_episodes(s.entries))
            for key, s in by_key.items()
        }
        return {
            key: {name: np.where(masks[key], 0.0, value) for name, value in entry.items()}
            for key, entry in entries.items()
        }

    return {
        "type": "per_embodiment",
        "num_episodes": sum(len(s.steps) for s in summaries.values()),
        "num_transition": sum(sum(s.steps) for s in summaries.values()),
        "embodiments": {
            name: {
                "state": field(s.state, masks[name].state),
                "action": field(s.action, masks[name].action),
            }
            for name, s in summaries.items()
        },
    }


class _FieldSummaries(NamedTuple):
    """One entry per episode: statistics over its steps, per step of the window and over both."""

    stepwise: list[FieldStatistics]
    entries: list[FieldStatistics]


class _Summaries(NamedTuple):
    action: dict[str, _FieldSummaries]
    state: dict[str, _FieldSummaries]
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
                windows = _windows(values, length)
                entry = out.setdefault(key, _FieldSummaries([], []))
                entry.stepwise.append(_summary(windows))
                entry.entries.append(_summary(windows.reshape(-1, windows.shape[-1])))
    return summaries


def _windows(values: Float[np.ndarray, "n d"], length: int) -> Float32[np.ndarray, "n t d"]:
    """The `length` values from each step on; the last one repeats past the end."""
    steps = np.arange(len(values))[:, None] + np.arange(length)
    return np.asarray(values)[np.minimum(steps, len(values) - 1)]


def _summary(values: np.ndarray) -> FieldStatistics:
    """Over the first axis; "var" is unbiased."""
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
    """One key's entry of the file."""
    parts = zip(PREFIXES, (stepwise, overall), strict=True)
    return {f"{prefix}_{name}": part[name] for prefix, part in parts for name in STATISTICS}


def _over_episodes(
    summaries: list[FieldStatistics], axis: int | tuple[int, ...] = 0
) -> FieldStatistics:
    """Combines summaries with equal weight; axis (0, 1) also combines the steps of the window."""
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
    """Mean and std of groups with equal weight: within plus between variance."""
    mean = means.mean(axis=axis)
    return mean, np.sqrt((variances + (means - mean) ** 2).mean(axis=axis))
