"""An episode's features as the mapping that transforms and filters are given."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.transforms.base import Steps


class EpisodeFeatures(Mapping[str, np.ndarray]):
    """Features of one episode by key, each read when it is first asked for.

    steps, episodes: columns of a split, anything that a slice of rows gives an array of: NumPy
      arrays and the columns of an index. An episode feature comes repeated for every step.
    rows: the episode's frames. episode: its number.
    where: the episode in words, for the error of a key that is not there.
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
    """A feature; DataError if it is not there, whatever kind of mapping `steps` is."""
    try:
        return steps[key]
    except KeyError:
        raise DataError(f"no feature {key!r}, there are {sorted(steps)}") from None


def numbers(steps: Steps, key: str) -> Float32[np.ndarray, "t d"]:
    """A numeric feature as [T, d] float32: one column if it is a number per step.

    DataError: it is not there, not numeric, or has more than one axis besides time.
    """
    values = np.asarray(feature(steps, key))
    if values.dtype.kind not in "biuf" or values.ndim > 2:
        raise DataError(
            f"feature {key!r} is {values.dtype}{list(values.shape)}, expected numbers of "
            "[steps] or [steps, dimensions]"
        )
    values = values[:, None] if values.ndim == 1 else values
    return values.astype(np.float32)


def joined(steps: Steps, keys: tuple[str, ...], length: int) -> Float32[np.ndarray, "t d"]:
    """Features side by side, in the order of their keys; [length, 0] if there are none."""
    parts = [numbers(steps, key) for key in keys]
    return np.concatenate([np.zeros((length, 0), np.float32), *parts], axis=1)
