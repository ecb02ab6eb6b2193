"""Exact statistics from the index."""

import dataclasses

import numpy as np
import pytest

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.official_statistics import index_episodes, official_statistics
from imagewam_jax.data.statistics import (
    exact_statistics,
    read_statistics,
    split_statistics,
    write_statistics,
)
from tests.data.conftest import TOY


def test_statistics_of_a_split_are_those_of_all_its_steps(toy, toy_index):
    statistics = split_statistics(toy_index, "train", TOY)
    for field, key in (("action", "action"), ("state", "observation/state")):
        rows = np.concatenate([e[key] for e in toy.truth["train"]]).astype(np.float64)
        expected = {
            "min": rows.min(0),
            "max": rows.max(0),
            "mean": rows.sum(0) / len(rows),
            "std": np.sqrt(((rows - rows.mean(0)) ** 2).sum(0) / len(rows)),
            "q01": np.quantile(rows, 0.01, axis=0),
            "q99": np.quantile(rows, 0.99, axis=0),
        }
        assert statistics[field].keys() == expected.keys()
        for name, value in expected.items():
            assert statistics[field][name].dtype == np.float64
            np.testing.assert_allclose(statistics[field][name], value, rtol=1e-12, err_msg=name)
    assert statistics["source"] == {
        "dataset": "toy_arm/1.0.0",
        "index": toy_index.checksum,
        "split": "train",
        "frames": 138,
        "episodes": 9,
    }


def test_float64_is_kept_over_many_rows():
    """In float32 the mean of 2e6 values near 1000 is off by more than their spread."""
    values = np.full((2_000_000, 1), 1000.0, np.float32)
    values[::2] += 0.0625
    statistics = exact_statistics(values)
    np.testing.assert_allclose(statistics["mean"], [1000.03125], rtol=1e-12)
    np.testing.assert_allclose(statistics["std"], [0.03125], rtol=1e-9)


def test_the_file_keeps_every_bit(toy_index, tmp_path):
    statistics = split_statistics(toy_index, "train", TOY)
    write_statistics(tmp_path / "statistics.json", statistics)
    again = read_statistics(tmp_path / "statistics.json")
    assert again["source"] == statistics["source"]
    for name, value in statistics["action"].items():
        np.testing.assert_array_equal(again["action"][name], value)


def test_a_number_that_is_not_finite_names_its_step(toy_index):
    split = toy_index.splits["train"]
    states = np.array(split.features["observation/state"])
    episode = int(np.argmax(np.diff(split.episode_start)))
    states[int(split.episode_start[episode]) + 7, 2] = np.nan
    broken = dataclasses.replace(split, features={**split.features, "observation/state": states})
    index = dataclasses.replace(toy_index, splits={"train": broken})
    with pytest.raises(DataError, match=rf"not finite at 1 steps, .*episode {episode}, step 7"):
        split_statistics(index, "train", TOY)


def test_official_statistics_from_an_index(toy, toy_index):
    """State windows hold one step, so their range is the exact one; an episode of one step has no
    unbiased variance and is named."""
    with pytest.raises(DataError, match="has 1 step"):
        official_statistics(index_episodes(toy_index.splits["train"], TOY), 16)
    statistics = official_statistics(index_episodes(toy_index.splits["val"], TOY), 16)
    exact = split_statistics(toy_index, "val", TOY)
    assert statistics["num_transition"] == 52 and statistics["num_episodes"] == 3
    assert statistics["action"]["default"]["stepwise_mean"].shape == (16, 4)
    for field in ("action", "state"):
        for name in ("min", "max"):
            np.testing.assert_array_equal(
                statistics[field]["default"][f"global_{name}"], exact[field][name]
            )
