"""The steps at which samples start, and the notation for episodes of a split."""

import dataclasses

import numpy as np
import pytest

from imagewam_jax.data.loading.start_frames import find_start_frames, parse_split
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


@pytest.mark.parametrize(
    ("text", "episodes"),
    [
        ("train", (0, 9)),
        ("train[:]", (0, 9)),
        ("train[2:5]", (2, 5)),
        ("train[7:]", (7, 9)),
        ("train[:50%]", (0, 4)),  # 4.5, rounded to even
        ("train[50%:]", (4, 9)),
        ("train[:95%]", (0, 9)),  # 8.55
        ("train[3:100]", (3, 9)),
        ("train[5:2]", (5, 5)),
    ],
)
def test_some_episodes_of_a_split(dataset, split, text, episodes):
    spec = parse_split(text)
    assert (spec.name, spec.episodes(9)) == ("train", episodes)
    start, stop = (split.episode_start[episode] for episode in episodes)
    np.testing.assert_array_equal(dataset.start_frames(text), np.arange(start, stop))


@pytest.mark.parametrize("text", ["", "train[", "train[1:2", "train[-1:]", "train[a:b]", "a b"])
def test_what_is_no_split(text):
    with pytest.raises(DataError, match="expected such as 'train', 'train"):
        parse_split(text)
