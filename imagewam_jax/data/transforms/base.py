"""Transforms and filters of episodes, and how they are found by name.

A transform turns the features of one episode into the arrays that training uses: one of actions
and one of states. A filter says which of its steps may start a sample. Both are NumPy functions
with a version. Standardized episodes are cached under a digest that holds the versions, so whoever
changes the result of a transform or a filter increases its version, and stale results are not
found again.
"""

import dataclasses
import hashlib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.errors import DataError

Steps = Mapping[str, np.ndarray]
ActionsAndStates = tuple[Float32[np.ndarray, "t a"], Float32[np.ndarray, "t p"]]
TransformFunction = Callable[[Steps, DatasetSpec], ActionsAndStates]
FilterFunction = Callable[
    [Steps, DatasetSpec, Float32[np.ndarray, "t a"], Float32[np.ndarray, "t p"]],
    Bool[np.ndarray, " t"],
]


@dataclasses.dataclass(frozen=True)
class Transform:
    """A versioned function(steps, spec) -> action [t, A], state [t, P], both float32, t <= T.

    steps: the episode's features by key, each with T rows: step features by their key below
      `steps` ("observation/state"), episode features by their key from the record's root
      ("episode_metadata/file_path"), the same in each row. Text is bytes in object arrays.
    Where t is smaller than T, the last T - t steps are dropped from the episode.
    options: the names of `DatasetSpec.options` that the function reads.
    """

    function: TransformFunction
    version: int
    options: tuple[str, ...] = ()

    def __call__(self, steps: Steps, spec: DatasetSpec) -> tuple[np.ndarray, np.ndarray]:
        """Runs the function; `standardize` checks the shapes that a user's function returns."""
        return self.function(steps, spec)


@dataclasses.dataclass(frozen=True)
class StepFilter:
    """A versioned function(steps, spec, action [t, A], state [t, P]) -> bool [t]: where samples may
    start. `steps` is what the transform was given, with T >= t rows."""

    function: FilterFunction
    version: int
    options: tuple[str, ...] = ()

    def __call__(self, steps: Steps, spec: DatasetSpec, action: np.ndarray, state: np.ndarray):
        return self.function(steps, spec, action, state)


def transform(
    *, version: int, options: tuple[str, ...] = ()
) -> Callable[[TransformFunction], Transform]:
    """Decorator that makes a transform of a function: @transform(version=1)."""
    return lambda function: Transform(function, version, options)


def step_filter(
    *, version: int, options: tuple[str, ...] = ()
) -> Callable[[FilterFunction], StepFilter]:
    """Decorator that makes a filter of a function: @step_filter(version=1)."""
    return lambda function: StepFilter(function, version, options)


def find(name: str, known: Mapping[str, Any], kind: type) -> Any:
    """The entry of `known` with that name, or the object that "package.module:function" names.

    kind: Transform or StepFilter. DataError: nothing has that name, it cannot be imported, or it
    has no version because its decorator is missing.
    """
    what = {Transform: "transform", StepFilter: "step_filter"}[kind]
    if name in known:
        return known[name]
    if ":" not in name:
        raise DataError(
            f"no {what} {name!r}, there are {sorted(known)}; name your own as "
            '"package.module:function"'
        )
    module_name, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(
            f"{what} {name!r}: {error}; expected a function of a module that Python finds "
            "(installed, or on PYTHONPATH)"
        ) from error
    if isinstance(found, Transform | StepFilter) and not isinstance(found, kind):
        raise DataError(f"{name!r} is a {type(found).__name__}, expected a {kind.__name__}")
    if not isinstance(found, kind):
        raise DataError(
            f"{what} {name!r} is a {type(found).__name__} without a version; write "
            f"`from imagewam_jax.data.transforms import {what}` and put `@{what}(version=1)` above "
            f"{attribute}, then count the version up whenever its results change"
        )
    return found


def describe_version(name: str, found: Transform | StepFilter) -> dict[str, Any]:
    """Name and version as a part of `spec_identity`; a user's own adds a digest of its source file.

    Tests guard the versions of this package. No test guards a user's, so an edit must show here.
    """
    identity: dict[str, Any] = {"name": name, "version": found.version}
    if ":" in name:
        source = Path(inspect.getsourcefile(inspect.unwrap(found.function))).read_bytes()
        identity["source"] = hashlib.sha256(source).hexdigest()[:16]
    return identity


class EpisodeFeatures(Mapping[str, np.ndarray]):
    """Features of one episode by key, each read when it is first asked for.

    steps, episodes: columns of a split that a slice of rows turns into an array: NumPy arrays or
      columns of an index. The value of an episode feature is repeated for every step.
    rows: the episode's frames. episode: its number.
    where: the episode in words, for the error about a missing key.
    """

    def __init__(
        self,
        steps: Mapping[str, Any],
        episodes: Mapping[str, Any],
        rows: slice,
        episode: int,
        where: str,
    ):
        self._steps, self._episodes = steps, episodes
        self._rows, self._episode, self._where = rows, episode, where
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self._read:
            self._read[key] = self._load(key)
        return self._read[key]

    def __contains__(self, key: object) -> bool:  # Mapping's own would read the feature
        return key in self._steps or key in self._episodes

    def __iter__(self) -> Iterator[str]:
        yield from self._steps
        yield from (key for key in self._episodes if key not in self._steps)

    def __len__(self) -> int:
        return len(self._steps.keys() | self._episodes.keys())

    def _load(self, key: str) -> np.ndarray:
        if key in self._steps:
            return self._steps[key][self._rows]
        if key in self._episodes:
            value = self._episodes[key][self._episode : self._episode + 1]
            return np.repeat(value, self._rows.stop - self._rows.start, axis=0)
        raise DataError(f"{self._where}: no feature {key!r}, there are {sorted(self)}")


def feature(steps: Steps, key: str) -> np.ndarray:
    """The feature of that key. DataError if it is missing, whatever kind of mapping `steps` is."""
    try:
        return steps[key]
    except KeyError:
        raise DataError(f"no feature {key!r}, there are {sorted(steps)}") from None


def numbers(steps: Steps, key: str) -> Float32[np.ndarray, "t d"]:
    """A numeric feature as [T, d] float32; one number per step gives one column.

    DataError: it is missing, not numeric, or has more than one axis besides time.
    """
    values = np.asarray(feature(steps, key))
    if values.dtype.kind not in "biuf" or values.ndim > 2:
        raise DataError(
            f"feature {key!r} is {values.dtype}{list(values.shape)}, expected numbers of "
            "[steps] or [steps, dimensions]"
        )
    values = values[:, None] if values.ndim == 1 else values
    return values.astype(np.float32)


def concatenated(steps: Steps, keys: tuple[str, ...], length: int) -> Float32[np.ndarray, "t d"]:
    """Features side by side, in the order of their keys; [length, 0] if there are no keys."""
    found = [numbers(steps, key) for key in keys]
    return np.concatenate([np.zeros((length, 0), np.float32), *found], axis=1)
