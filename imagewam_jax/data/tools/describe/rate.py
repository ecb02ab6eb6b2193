"""The control rate of a dataset, if anything in it says so."""

import re

import numpy as np

from imagewam_jax.data.index.columns import Dense
from imagewam_jax.data.index.dataset_index import SplitIndex
from imagewam_jax.data.registry import REGISTRY
from imagewam_jax.data.tools.describe.folder import Opened

ASSUMED = 10.0
_RATE = re.compile(r"(^|[_/.])(fps|hz|control_(hz|rate|frequency|freq)|frequency|freq)([_/.]|$)")
_TIME = re.compile(r"timestamp|(^|[_/.])(time|t|secs?|seconds|time_ns|stamp)([_/.]|$)")
_STATED = re.compile(
    r"(\d+(?:\.\d+)?)\s*(?:hz|hertz|fps|steps per second|frames per second)\b", re.IGNORECASE
)
# Seconds, milliseconds, microseconds and nanoseconds.
_UNITS = ((1.0, "s"), (1e3, "ms"), (1e6, "us"), (1e9, "ns"))
_PLAUSIBLE = (0.5, 250.0)


def control_rate(opened: Opened) -> tuple[float, str]:
    """Steps per second, and where that stands. `ASSUMED` if nothing says so."""
    split = max(opened.index.splits.values(), key=lambda split: split.num_frames)
    found = _feature(split) or _stated(opened) or _measured(split) or _registered(opened)
    return found or (ASSUMED, "nothing in the dataset states it: put the steps per second here")


def _registered(opened: Opened) -> tuple[float, str] | None:
    spec = REGISTRY.get(opened.folder.name)
    return (spec.control_hz, "the registry says so of a dataset of this name") if spec else None


def _feature(split: SplitIndex) -> tuple[float, str] | None:
    for columns in (split.episodes, split.steps):
        for key, column in columns.items():
            if _RATE.search(key.lower()) and isinstance(column, Dense) and len(column):
                value = float(np.ravel(column[0:1])[0]) if column.values[:1].size else 0.0
                if _is_plausible(value):
                    return value, f"{key!r} says so"
    return None


def _stated(opened: Opened) -> tuple[float, str] | None:
    places = {"the dataset's description": opened.description}
    places |= {f"the description of {key!r}": note for key, note in opened.notes.items()}
    for where, text in places.items():
        found = _STATED.search(text)
        if found and _is_plausible(float(found[1])):
            return float(found[1]), f"{where} says {found[0]!r}"
    return None


def _measured(split: SplitIndex) -> tuple[float, str] | None:
    """The median difference of a feature that counts time, in the unit that makes sense of it."""
    start, lengths = split.episode_start, np.diff(split.episode_start)
    if not len(lengths) or lengths.max() < 3:
        return None
    episode = int(lengths.argmax())
    rows = slice(int(start[episode]), int(start[episode]) + min(int(lengths[episode]), 1000))
    for key, column in split.steps.items():
        if not (_TIME.search(key.lower()) and isinstance(column, Dense)) or column.values.ndim > 2:
            continue
        values = column[rows].astype(np.float64).reshape(rows.stop - rows.start, -1)
        step = float(np.median(np.diff(values[:, 0]))) if values.shape[1] == 1 else 0.0
        if step == 1:  # a number of steps is no time
            continue
        for per_second, unit in _UNITS:
            if step > 0 and _is_plausible(per_second / step):
                rate = per_second / step
                return float(f"{rate:.3g}"), f"{key!r} goes on by {step:.4g} {unit} per step"
    return None


def _is_plausible(rate: float) -> bool:
    return _PLAUSIBLE[0] <= rate <= _PLAUSIBLE[1]
