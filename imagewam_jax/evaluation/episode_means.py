"""Means over the samples of recorded episodes, and how sure they are.

Samples of one episode are alike, so what counts for an interval is the number of episodes: each
of them is one draw, with all its samples. The mean over samples is then a ratio of two sums over
draws, whose variance follows from its linearization (Cochran, Sampling Techniques, 1977, 6.3).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Z_95 = 1.959964  # of the normal distribution; half of a 95 % interval in standard errors


class Mean(NamedTuple):
    """A mean, and half the width of its 95 % interval: NaN where fewer than two episodes count."""

    value: Float[np.ndarray, "..."]
    half_width: Float[np.ndarray, "..."]


class EpisodeMeans:
    """Means of arrays of one shape, one array per sample.

    Samples are added in any order and in batches of any size; a mean is the same to the last bit
    only where these are.
    """

    def __init__(self, episodes: int, shape: tuple[int, ...]):
        """`episodes` are numbered from 0. Memory is 16 bytes for each number of each of them."""
        self.total = np.zeros((episodes, *shape))
        self.weight = np.zeros((episodes, *shape))

    def add(
        self,
        episode_n: Int[np.ndarray, " n"],
        values: Float[np.ndarray, "n ..."],
        weight: Float[np.ndarray, "n ..."],
    ) -> None:
        """Add samples; `weight` broadcasts to `values`. What has no weight may be NaN."""
        weight = np.broadcast_to(weight, values.shape)
        np.add.at(self.total, episode_n, np.where(weight > 0, values * weight, 0.0))
        np.add.at(self.weight, episode_n, weight)

    @property
    def episodes(self) -> int:
        """The number of episodes that have a sample."""
        return int(np.count_nonzero(self.weight.any(tuple(range(1, self.weight.ndim)))))

    def mean(self, axes: tuple[int, ...] = ()) -> Mean:
        """The mean over all samples, averaged over some axes of an array.

        Where no sample counts it is NaN, which an average over `axes` leaves out.
        """
        with np.errstate(invalid="ignore"):
            counted = self.weight.sum(0)
            mean = self.total.sum(0) / np.where(counted > 0, counted, np.nan)
            # What each episode moves the mean by: the derivative of a ratio of sums.
            influence = (self.total - mean * self.weight) / counted
        if axes:
            seen = counted > 0
            share = np.where(seen, 1.0, np.nan) / np.maximum(seen.sum(axes, keepdims=True), 1)
            mean = _sum(mean * share, axes)
            influence = _sum(influence * share, tuple(axis + 1 for axis in axes))
        spread = np.square(influence).sum(0)
        few = self.episodes < 2
        correction = np.nan if few else self.episodes / (self.episodes - 1)
        return Mean(mean, Z_95 * np.sqrt(spread * correction))


def _sum(x: Float[np.ndarray, "..."], axes: tuple[int, ...]) -> Float[np.ndarray, "..."]:
    """The sum without what is NaN; NaN where all is."""
    return np.where(np.isnan(x).all(axes), np.nan, np.nansum(x, axes))
