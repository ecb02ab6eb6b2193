"""Splits in the notation of TFDS, and several splits as one."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from imagewam_jax.data.loading.splits import (
    select_episodes,
    selected_ranges,
    shared_episodes,
)
from imagewam_jax.errors import DataError
from tests.data.toy import toy_data

WRITTEN = [
    "train",
    "val",
    "all",
    "train+val",
    "val + train",
    "train[2:5]",
    "train[7:]",
    "train[:-1]",
    "train[-3:-1]",
    "train[-9:]",
    "train[5:2]",
    "train[3:3]",
    "train[:50%]",  # 4.5 of 9, rounded to even
    "train[50%:]",
    "train[:95%]",
    "train[:99.5%]",
    "train[-10%:]",
    "train[-4%:]",  # -0.36, rounded to 0: all of them
    "train[100%:]",
    "train[-100%:-50%]",
    "train[:50%]+val[1:]",
    "train[:20%]+val+train[80%:]",
    "train[1shard:]",
    "train[:-1shard]",
    "train[1shard]",
    "train[-2shard:-1shard]",
]


@pytest.fixture(scope="module")
def dataset(toy):
    return toy_data(toy.dataset_dir).datasets[0]


@pytest.mark.parametrize("text", WRITTEN)
def test_the_episodes_are_those_of_tfds(dataset, text):
    splits = pytest.importorskip("tensorflow_datasets").core.splits
    index = dataset.index
    shards = {n: np.bincount(s.episode_shard).tolist() for n, s in index.splits.items()}
    infos = {
        name: SimpleNamespace(shard_lengths=lengths, num_examples=sum(lengths))
        for name, lengths in shards.items()
    }
    expected = sorted(
        (part.splitname, episode)
        for part in splits.AbstractSplit.from_spec(text).to_absolute(infos)
        for episode in range(infos[part.splitname].num_examples)[part.from_ : part.to]
    )
    if not expected:
        with pytest.raises(DataError, match=r"has no episodes; its splits have .'train': 9, 'val'"):
            select_episodes(text, index, dataset.standardized)
        return
    split, _, episodes = select_episodes(text, index, dataset.standardized)
    found = [split.describe_frame(split.episode_start[e]).split(", step")[0] for e in episodes]
    assert found == [f"split {name!r}, episode {episode}" for name, episode in expected]


def test_older_ways_to_write_a_whole_split(dataset):
    assert dataset.episodes("train[:]").tolist() == list(range(9))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "split ''; expected such as 'train', 'train"),
        ("train[", "expected such as"),
        ("train[1:2", "expected such as"),
        ("train[a:b]", "expected such as"),
        ("train[1:2:3]", "expected such as"),
        ("a b", "expected such as"),
        ("train+", "expected such as"),
        ("train[5]", r"'train\[5\]' is no range"),
        ("train[1.5:]", "1.5 is no whole number"),
        ("train[:150%]", "150% is not within -100% and 100%"),
        ("train[2:50%]", "bounds of two units"),
        ("all[:50%]", "'all' takes no range; give one to each split"),
        ("train[3:100]", r"'train\[3:100\]' reaches beyond the 9 episodes of 'train'"),
        ("train[-10:]", "reaches beyond the 9 episodes"),
        ("test", "toy_arm has no split 'test'; its splits and their episodes are {'train': 9,"),
        ("train[:5]+train[3:]", "selects 2 episodes more than once"),
    ],
)
def test_what_is_no_split(dataset, text, complaint):
    with pytest.raises(DataError, match=complaint):
        dataset.select(text)


def test_samples_of_several_splits(toy, dataset):
    """They are those of each split, one after the other."""
    reader, frames = dataset.reader("val[1:]+train"), dataset.start_frames("val[1:]+train")
    numbers = {"train": 138, "val": 52 - len(toy.truth["val"][0]["action"])}
    assert len(frames) == sum(numbers.values())
    both = reader.read(frames[::7])
    parts = [dataset.reader(n).read(dataset.start_frames(n)) for n in ("train", "val[1:]")]
    for key in ("images", "image_size", "actions", "action_is_pad", "target_is_pad", "proprio"):
        np.testing.assert_array_equal(both[key], np.concatenate([p[key] for p in parts])[::7])
    for key in ("text_id", "step"):
        np.testing.assert_array_equal(both[key], np.concatenate([p[key] for p in parts])[::7])
    assert dataset.identity("val+train")["split"] == "train+val"
    assert dataset.identity("train[:3]")["split"] == "train"


def test_selected_ranges_and_what_two_selections_share(dataset):
    found = dataset.select("train[:20%]+val+train[80%:]")
    assert selected_ranges(found) == [(0, 2), (7, 12)]
    assert shared_episodes(found, dataset.select("train[1:8]")) == 2
    assert shared_episodes(found, dataset.select("val")) == 3
    assert shared_episodes(dataset.select("train"), dataset.select("val")) == 0


def test_a_split_is_named_with_its_field(toy):
    data = toy_data(toy.dataset_dir, eval_split="test", train_split="train[9:]")
    with pytest.raises(DataError, match=r"eval_split is 'test': toy_arm has no split .*; hold"):
        data.sources("test")
    with pytest.raises(DataError, match=r"data.train_split is 'train\[9:\]': .* has no episodes"):
        data.sources("train[9:]")
    with pytest.raises(DataError, match=r"^toy_arm has no split 'other'"):
        data.sources("other")


def test_a_split_without_start_frames(toy):
    (dataset,) = toy_data(toy.dataset_dir).datasets
    none = dataclasses.replace(dataset.standardized.splits["val"], can_start=np.zeros(52, bool))
    standardized = dataclasses.replace(
        dataset.standardized, splits={**dataset.standardized.splits, "val": none}
    )
    changed = dataclasses.replace(dataset, standardized=standardized)
    message = "data.eval_split is 'val': toy_arm: no sample can start in its 3 episodes of 52 steps"
    with pytest.raises(DataError, match=message):
        changed.start_frames("val")
