"""What is odd about the numbers of a dataset: outliers, dimensions that do not vary, shifts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from imagewam_jax.data.datasets import Dataset
from imagewam_jax.data.loading.splits import selected_steps
from imagewam_jax.data.statistics.motion import Episode, find_shift
from imagewam_jax.preprocess.normalization import make_normalizer
from imagewam_jax.preprocess.statistics import FieldStatistics

# Data whose middle 98 % take less than this share of [-1, 1] are flattened.
SLIVER = 0.1
# A dimension is noise if its spread is this small beside its mean, or beside other dimensions'.
NOISE = 1e-3
NOISE_BESIDE_OTHERS = 1e-5
MOST_STEPS = 50_000  # show a shift as well as more do


class Oddity(NamedTuple):
    """What is odd, and what to do about it. harmless: training is none the worse for it."""

    text: str
    harmless: bool = False

    def __str__(self) -> str:
        return f"{'note' if self.harmless else 'warning'}: {self.text}"


def find_oddities(
    dataset: Dataset, split: str, statistics: Mapping[str, FieldStatistics], normalization: str
) -> list[Oddity]:
    """What is odd about the actions and states of a split's episodes.

    statistics: those that normalise the dataset, of "action" and of "state".
    normalization: a mode of `normalization.make_normalizer`.
    """
    found = []
    for field in ("action", "state"):
        of_field = statistics[field]
        constant = of_field["max"] == of_field["min"]
        for dim in range(len(getattr(dataset.spec, field).dims)):
            found += _of_dim(dataset, split, field, dim, of_field, normalization)
        if constant.any() and constant.all() and field == "action":
            found.append(Oddity(f"{dataset.name}: no dimension of the action varies: wrong keys?"))
    return found + list(_of_time(dataset, split))


def _of_dim(
    dataset: Dataset,
    split: str,
    field: str,
    dim: int,
    statistics: FieldStatistics,
    normalization: str,
) -> Iterator[Oddity]:
    name = f"{dataset.name}: {field} {getattr(dataset.spec, field).dims[dim]!r}"
    low, high, q01, q99, mean, std = (
        float(statistics[key][dim]) for key in ("min", "max", "q01", "q99", "mean", "std")
    )
    if low == high:
        then = "acting returns about that number" if field == "action" else "it says nothing"
        yield Oddity(f"{name} is {low:.4g} at every step: {then}", harmless=True)
        return
    scale = float(make_normalizer(statistics, normalization).scale[dim])
    others = np.sort(statistics["std"][np.arange(len(statistics["std"])) != dim])
    usual = float(np.median(others[others > 0])) if (others > 0).any() else 0.0
    if std < max(NOISE * abs(mean), NOISE_BESIDE_OTHERS * usual) and not _far(low, high, q01, q99):
        yield from _noise(name, field, std, mean, scale)
        return
    if q01 == q99:
        yield from _rare(dataset, split, field, dim, name, q01)
    elif _far(low, high, q01, q99) and (q99 - q01) * scale < 2 * SLIVER:
        beyond = _beyond(dataset, split, field, dim, q01, q99)
        yield Oddity(
            f"{name} has outliers: 98 % of it is in [{q01:.4g}, {q99:.4g}], the rest reaches "
            f"[{low:.4g}, {high:.4g}], {beyond}. Under data.normalization={normalization!r} that "
            f"98 % takes {(q99 - q01) * scale / 2:.2%} of [-1, 1]. Repair or leave out these "
            "episodes, or set data.normalization='q01/q99', which clips outliers"
        )


def _far(low: float, high: float, q01: float, q99: float) -> bool:
    """Whether the outermost 2 % reach far beyond the rest."""
    return (q99 - q01) < SLIVER * (high - low)


def _noise(name: str, field: str, std: float, mean: float, scale: float) -> Iterator[Oddity]:
    what = f"{name} hardly varies: {mean:.4g} with a standard deviation of {std:.2g}"
    spread = std * scale
    if spread < NOISE:  # as a range that counts as constant
        yield Oddity(f"{what}, which normalization leaves as small as it is", harmless=True)
        return
    yield Oddity(
        f"{what}. If that is noise, normalization makes it as large as a true motion (standard "
        f"deviation {spread:.2g}): leave it out with {field}_columns, an option of the transform "
        '"columns", or set it to its mean in a transform of your own'
    )


def _rare(
    dataset: Dataset, split: str, field: str, dim: int, name: str, usual: float
) -> Iterator[Oddity]:
    """At least 98 % of the steps hold one value: a flag that is rarely set, or a slip."""
    values = _values(dataset, split, field)
    column = values.numbers[:, dim]
    other = np.flatnonzero(column != np.float32(usual))
    if 0 < len(other) <= max(1, len(column) // 2000):
        step = values.where(int(other[0]))
        yield Oddity(
            f"{name} is {usual:.4g} but for {len(other)} of {len(column)} steps, such as "
            f"{column[other[0]]:.4g} in {step}. If that is a slip, repair or leave out the episode"
        )


def _beyond(dataset: Dataset, split: str, field: str, dim: int, q01: float, q99: float) -> str:
    """How many steps are outliers, and which is the farthest."""
    values = _values(dataset, split, field)
    column = values.numbers[:, dim].astype(np.float64)
    width = q99 - q01
    away = np.maximum(q01 - column, column - q99)
    step = int(away.argmax())
    return (
        f"{int((away > 2 * width).sum())} of {len(column)} steps lie far out, farthest "
        f"{column[step]:.4g} in {values.where(step)}"
    )


class _Values(NamedTuple):
    """All steps of a split's episodes. episode, step: of each."""

    numbers: Float32[np.ndarray, "n d"]
    episode: np.ndarray
    step: np.ndarray

    def where(self, row: int) -> str:
        return f"episode {self.episode[row]}, step {self.step[row]}"


def _values(dataset: Dataset, split: str, field: str) -> _Values:
    selected = dataset.select(split)
    rows = selected_steps(selected)
    column = getattr(selected.standardized, f"{field}s")
    episode = selected.split.frame_episode[rows]
    return _Values(column[rows], episode, rows - selected.split.episode_start[episode])


def _of_time(dataset: Dataset, split: str) -> Iterator[Oddity]:
    """Actions that lag or lead the state."""
    spec = dataset.spec
    if not spec.action.dims or not spec.state.dims:
        return
    indexed, standardized, numbers = dataset.select(split)
    steps = standardized.episode_steps[numbers]
    every = max(1, -(-int(steps.sum()) // MOST_STEPS))
    episodes = []
    for number in numbers[steps > 1][::every].tolist():
        first = indexed.episode_start[number]
        rows = slice(first, first + standardized.episode_steps[number])
        episodes.append(Episode(standardized.actions[rows], standardized.states[rows]))
    shift = find_shift(
        episodes, spec.action.relative, _pairs(spec.action.dims, spec.state.dims), spec.control_hz
    )
    if shift is None:
        return
    dims = ", ".join(repr(spec.action.dims[dim]) for dim in shift.dims)
    distance = f"{abs(shift.lag)} step{'s' * (abs(shift.lag) > 1)}"
    measured = (
        f"their correlation with its change is {shift.best:.2f} there, {shift.own:.2f} in their "
        "own step"
    )
    if shift.lag < 0:
        yield Oddity(
            f"{dataset.name}: actions {dims} come {distance} late: the state moves before them "
            f"({measured}). Does an action stand beside the observation that follows it? A "
            f"transform that returns action[{-shift.lag}:] and state[:{shift.lag}] mends it "
            "(docs/data.md)"
        )
    else:
        yield Oddity(
            f"{dataset.name}: actions {dims} come {distance} early: the state moves later "
            f"({measured}), by {shift.lag / spec.control_hz:.2g} s at the row's control_hz of "
            f"{spec.control_hz:g}. If that is not the robot's own delay, write the dataset anew "
            f"with each action {distance} later"
        )


def _pairs(actions: Sequence[str], states: Sequence[str]) -> list[int | None]:
    """The state dimension of the same name as each action dimension; None if no name is shared."""
    if not set(actions) & set(states):
        return [None] * len(actions)
    return [states.index(dim) if dim in states else None for dim in actions]
