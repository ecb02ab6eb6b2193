"""Exact statistics from the index."""

import dataclasses

import numpy as np
import pytest

from imagewam_jax.data.dataset_spec import Encoding
from imagewam_jax.data.statistics import exact as module
from imagewam_jax.data.statistics.exact import (
    dataset_statistics,
    exact_statistics,
    statistics_by_dataset,
)
from imagewam_jax.data.statistics.official import official_statistics, standardized_episodes
from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.statistics import read_statistics, write_statistics
from tests.data.toy import toy_data


@pytest.fixture
def dataset(toy, tmp_path):
    """With an index of its own, so that nothing is computed yet."""
    return toy_data(toy.dataset_dir, index_directory=str(tmp_path)).datasets[0]


def test_statistics_of_a_split_are_those_of_all_its_steps(toy, dataset):
    statistics = dataset_statistics([dataset], "train")
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
    part = statistics["source"].pop("parts")["toy_arm"]
    assert statistics["source"] == {"episodes": 9, "frames": 138}
    assert part == {
        "dataset": "toy_arm/1.0.0",
        "index": dataset.index.checksum,
        "standard": dataset.standardized.digest,
        "split": "train",
        "first_episode": 0,
        "episodes": 9,
        "frames": 138,
    }


def test_float64_is_kept_over_many_rows():
    """A float32 mean of 2e6 values near 1000 would be off by more than their spread."""
    values = np.full((2_000_000, 1), 1000.0, np.float32)
    values[::2] += 0.0625
    statistics = exact_statistics(values)
    np.testing.assert_allclose(statistics["mean"], [1000.03125], rtol=1e-12)
    np.testing.assert_allclose(statistics["std"], [0.03125], rtol=1e-9)


def test_they_are_computed_once_and_never_changed(dataset, monkeypatch):
    statistics = dataset_statistics([dataset], "train")
    monkeypatch.setattr(module, "exact_statistics", None)
    again = dataset_statistics([dataset], "train")
    assert again["source"] == statistics["source"]
    for name, value in statistics["action"].items():
        np.testing.assert_array_equal(again["action"][name], value)
    (file,) = (dataset.index_folder / "statistics").iterdir()
    write_statistics(file, statistics)
    with pytest.raises(DataError, match="holds other statistics; they are never changed"):
        write_statistics(file, statistics | {"action": {"min": np.zeros(4)}})
    assert read_statistics(file)["source"] == statistics["source"]


def test_some_episodes_and_steps_that_are_not_of_them(toy, dataset):
    """A transform's dropped steps do not count, nor do those of other episodes."""
    standardized = dataset.standardized.splits["train"]
    lengths = np.array(standardized.episode_steps)
    lengths[5] -= 1
    shorter = dataclasses.replace(standardized, episode_steps=lengths)
    splits = {**dataset.standardized.splits, "train": shorter}
    changed = dataclasses.replace(
        dataset,
        standardized=dataclasses.replace(dataset.standardized, splits=splits, digest="other"),
    )
    found = dataset_statistics([changed], "train[4:7]")
    actions = [toy.truth["train"][number]["action"] for number in (4, 5, 6)]
    rows = np.concatenate([actions[0], actions[1][:-1], actions[2]]).astype(np.float64)
    np.testing.assert_allclose(found["action"]["mean"], rows.mean(0), rtol=1e-12)
    np.testing.assert_array_equal(found["action"]["max"], rows.max(0))
    assert found["source"]["frames"] == len(rows) and found["source"]["episodes"] == 3
    with pytest.raises(DataError, match=r"'train\[9:\]' has no episodes"):
        dataset_statistics([dataset], "train[9:]")


def test_datasets_together(toy, dataset):
    """Every step weighs the same, whichever dataset it is of."""
    other = dataclasses.replace(dataset, spec=dataclasses.replace(dataset.spec, name="other"))
    data = dataclasses.replace(toy_data(toy.dataset_dir), datasets=(dataset, other))
    pooled = statistics_by_dataset(data, "train", pooled=True)
    assert pooled["toy_arm"] is pooled["other"] and pooled["other"]["source"]["frames"] == 276
    each = statistics_by_dataset(data, "train", pooled=False)
    assert each["toy_arm"]["source"]["frames"] == 138
    np.testing.assert_allclose(pooled["other"]["state"]["mean"], each["other"]["state"]["mean"])
    spec = dataclasses.replace(other.spec, action=Encoding("joints", tuple("xyzw"), (True,) * 4))
    with pytest.raises(DataError, match="'toy_arm': 'toy', 'other': 'joints'"):
        dataset_statistics([dataset, dataclasses.replace(other, spec=spec)], "train")


def test_official_statistics_from_an_index(dataset):
    """State windows hold one step, so their range is the exact one; an episode of one step has no
    unbiased variance and is named."""

    def episodes(split):
        index = dataset.index.splits[split]
        numbers = range(index.num_episodes)
        return standardized_episodes(index, dataset.standardized.splits[split], numbers)

    with pytest.raises(DataError, match="has 1 step"):
        official_statistics(episodes("train"), 16)
    statistics = official_statistics(episodes("val"), 16)
    exact = dataset_statistics([dataset], "val")
    assert statistics["num_transition"] == 52 and statistics["num_episodes"] == 3
    assert statistics["action"]["default"]["stepwise_mean"].shape == (16, 4)
    for field in ("action", "state"):
        for name in ("min", "max"):
            np.testing.assert_array_equal(
                statistics[field]["default"][f"global_{name}"], exact[field][name]
            )
