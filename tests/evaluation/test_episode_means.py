"""Means over episodes, against the textbook and against redrawn episodes."""

import numpy as np
import pytest

from imagewam_jax.evaluation.episode_means import Z_95, EpisodeMeans


def means(episode_n, values, weight, episodes):
    result = EpisodeMeans(episodes, values.shape[1:])
    result.add(episode_n, values, weight)
    return result


def test_one_sample_an_episode_gives_the_standard_error_of_a_mean():
    values = np.random.default_rng(0).normal(size=(40, 3))
    mean = means(np.arange(40), values, np.ones((40, 1)), 40).mean()
    np.testing.assert_allclose(mean.value, values.mean(0))
    np.testing.assert_allclose(mean.half_width, Z_95 * values.std(0, ddof=1) / np.sqrt(40))


def test_the_interval_is_that_of_redrawn_episodes():
    """Episodes differ in length and level. By samples the interval would be far smaller."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 30, 200)
    episode_n = np.repeat(np.arange(200), lengths)
    values = rng.normal(size=200)[episode_n, None] + 0.1 * rng.normal(size=(lengths.sum(), 2))
    found = means(episode_n, values, np.ones((len(values), 1)), 200).mean()
    sums = np.stack([values[episode_n == k].sum(0) for k in range(200)])
    drawn = rng.integers(0, 200, (4000, 200))
    redrawn = sums[drawn].sum(1) / lengths[drawn].sum(1)[:, None]
    np.testing.assert_allclose(found.value, values.mean(0))
    np.testing.assert_allclose(found.half_width, Z_95 * redrawn.std(0), rtol=0.06)
    by_samples = Z_95 * values.std(0) / np.sqrt(len(values))
    assert (found.half_width > 3 * by_samples).all()


def test_an_average_over_axes_is_a_mean_of_averages():
    """Where all numbers of a sample count alike, averaging before and after is one thing."""
    rng = np.random.default_rng(2)
    values, episode_n = rng.normal(size=(60, 4, 3)), rng.integers(0, 20, 60)
    whole = means(episode_n, values, np.ones((60, 1, 1)), 20)
    averaged = means(episode_n, values.mean(1), np.ones((60, 1)), 20).mean()
    np.testing.assert_allclose(whole.mean((0,)), averaged)


def test_what_has_no_weight_is_left_out():
    values = np.array([[1.0, np.nan, 7.0], [3.0, 4.0, np.nan]])
    weight = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    found = means(np.array([0, 1]), values, weight, 5)
    np.testing.assert_array_equal(found.mean().value, [2, 4, np.nan])
    assert found.mean((0,)).value == 3  # of the two that are there
    # The second number is that of one episode alone, which does not move its own mean.
    np.testing.assert_allclose(found.mean((0,)).half_width, Z_95 * np.sqrt(2 * 2 * 0.25**2))


def test_batches_and_order_change_nothing():
    rng = np.random.default_rng(3)
    values, episode_n = rng.integers(0, 9, (50, 2)).astype(float), rng.integers(0, 7, 50)
    together = means(episode_n, values, np.ones((50, 1)), 7)
    parts = EpisodeMeans(7, (2,))
    for rows in np.array_split(rng.permutation(50), 6):
        parts.add(episode_n[rows], values[rows], np.ones((len(rows), 1)))
    np.testing.assert_array_equal(parts.mean(), together.mean())


@pytest.mark.parametrize("episode_n", [[], [2, 2, 2]])
def test_no_episode_or_one_has_no_interval(episode_n):
    values = np.arange(2.0 * len(episode_n)).reshape(-1, 2)
    mean = means(np.array(episode_n, int), values, np.ones((len(episode_n), 1)), 4).mean()
    assert np.isnan(mean.half_width).all()
    assert np.isnan(mean.value).all() == (not episode_n)
