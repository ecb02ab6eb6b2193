"""`dataset_stats.json` against the files the official code wrote."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagewam_jax.data.statistics.official import Episode, official_statistics
from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.statistics import read_statistics, write_statistics
from tests.goldens import golden

# The official code works in float32: values up to 8, so its own rounding reaches 1e-6.
TOLERANCE = 2e-6


def load_episodes(layout):
    """The recorded raw episodes of one layout, and its section of config.json."""
    folder = golden("normalization")
    config = json.loads((folder / "config.json").read_text())["layouts"][layout]
    raw = load_file(folder / "raw_episodes.safetensors")
    keys = {f: [m["key"] for m in config["shape_meta"][f]] for f in ("action", "state")}
    episodes = [
        Episode(*({k: raw[f"{layout}.episode{i}.{f}.{k}"] for k in keys[f]} for f in keys))
        for i in range(3)
    ]
    return episodes, config


def assert_statistics_equal(found, expected, path=""):
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_statistics_equal(found[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, np.ndarray):
        assert found.shape == expected.shape, path
        np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE, err_msg=path)
    else:
        assert found == expected, path


@pytest.mark.parametrize("layout", ["single", "multi"])
def test_plain_statistics_match_the_official_file(layout):
    episodes, config = load_episodes(layout)
    expected = read_statistics(golden("normalization") / f"stats_{layout}.json")
    assert_statistics_equal(official_statistics(episodes, config["action_size"]), expected)


def test_statistics_survive_the_file_exactly(tmp_path):
    statistics = official_statistics(load_episodes("multi")[0], 5)
    write_statistics(tmp_path / "dataset_stats.json", statistics)
    again = read_statistics(tmp_path / "dataset_stats.json")
    assert again["num_transition"] == statistics["num_transition"]
    for key, value in statistics["action"]["eef"].items():
        np.testing.assert_array_equal(again["action"]["eef"][key], value)


def test_an_episode_of_one_step_is_an_error():
    one = Episode({"default": np.zeros((1, 2))}, {"default": np.zeros((1, 2))})
    with pytest.raises(DataError, match="episode 0 has 1 step"):
        official_statistics([one], 4)
