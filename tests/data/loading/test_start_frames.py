"""The steps at which samples start."""

import dataclasses

import numpy as np
import pytest

from imagewam_jax.data.loading.start_frames import find_start_frames
from imagewam_jax.errors import DataError
from tests.data.toy import toy_data


@pytest.fixture(scope="module")
def dataset(toy):
    return toy_data(toy.dataset_dir).datasets[0]


@pytest.fixture(scope="module")
def split(dataset):
    return dataset.index.splits["train"]


@pytest.fixture
def standardized(dataset):
    return dataset.standardized.splits["train"]


def test_every_step_or_every_nth_of_each_episode(toy, split, standardized):
    np.testing.assert_array_equal(find_start_frames(split, standardized), np.arange(138))
    expected, start = [], 0
    for episode in toy.truth["train"]:
        steps = len(episode["action"])
        expected += [start + t for t in range(0, steps, 8)]
        start += steps
    np.testing.assert_array_equal(find_start_frames(split, standardized, every=8), expected)
    with pytest.raises(DataError, match="samples every 0 steps"):
        find_start_frames(split, standardized, every=0)


def test_steps_that_a_filter_left_out_and_steps_without_an_instruction(split, standardized):
    can_start, text = np.ones(138, bool), np.zeros((138, 2), np.int32)
    can_start[[3, 40, 137]] = False
    text[[7, 40]] = -1
    changed = dataclasses.replace(standardized, can_start=can_start, text_ids=text)
    used = [t for t in range(138) if t not in (3, 40, 137)]
    np.testing.assert_array_equal(find_start_frames(split, changed, unlabelled="blank"), used)
    used.remove(7)
    np.testing.assert_array_equal(find_start_frames(split, changed, unlabelled="drop"), used)
    where = split.describe_frame(7).split(" (")[0]
    with pytest.raises(DataError, match=rf"1 of 135 steps have no instruction, first in {where}"):
        find_start_frames(split, changed, unlabelled="error")
    with pytest.raises(DataError, match="unlabelled is 'keep', expected one of"):
        find_start_frames(split, changed, unlabelled="keep")


def test_some_episodes(split, standardized):
    expected = [frame for e in (1, 4) for frame in range(*split.episode_start[e : e + 2].tolist())]
    found = find_start_frames(split, standardized, episodes=np.array([1, 4]))
    np.testing.assert_array_equal(found, expected)
