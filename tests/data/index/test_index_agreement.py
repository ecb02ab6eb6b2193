"""The index against what TFDS reads: every feature of every set, bit for bit."""

import numpy as np
import pytest

from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.columns import Coded, Dense, Ragged, Text


@pytest.fixture(scope="module")
def indexes(layouts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes")
    return {
        name: build_index(layout.dataset_dir, folder / name, progress=False)
        for name, layout in layouts.items()
    }


def assert_same(found, expected, where):
    """Equal values, dtypes and shapes; numbers by their bits."""
    if isinstance(expected, bytes):
        assert found == expected, where
        return
    assert found.dtype == expected.dtype, where
    assert found.shape == expected.shape, where
    if expected.dtype == object:
        assert found.tolist() == expected.tolist(), where
    else:
        assert found.tobytes() == np.ascontiguousarray(expected).tobytes(), where


NAMES = ("bridge", "fractal", "libero", "odd")
# The images that are not indexed are skipped with a reason, all other features are compared.
SKIPPED = {
    "steps/cloud": "6000 numbers in a row, more than 4096",
    "steps/crops": "a sequence of images whose number per step is not declared and not always "
    "the same",
    "steps/tree": "a sequence of sequences is not read",
    "steps/inner": "a feature 'Dataset' is not read",
    "episode_metadata/thumbnail": "an image of an episode is not read",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_feature_of_a_step(layouts, indexes, name):
    index = indexes[name]
    assert index.skipped == (SKIPPED if name == "odd" else {})
    assert index.splits.keys() == layouts[name].truth.keys()
    for split_name, episodes in layouts[name].truth.items():
        split = index.split(split_name)
        assert split.num_episodes == len(episodes)
        for number, (steps, _) in enumerate(episodes):
            rows = slice(*split.episode_start[number : number + 2].tolist())
            indexed = split.steps.keys() | split.images.keys()
            skipped = {key.removeprefix("steps/") for key in index.skipped}
            assert indexed | (skipped & steps.keys()) == steps.keys()
            for key, expected in steps.items():
                if key in split.steps:
                    found = split.steps[key][rows]
                    assert len(found) == len(expected), key
                    for t, value in enumerate(expected):
                        assert_same(found[t], value, f"{split_name} {number} {t} {key}")


@pytest.mark.parametrize("name", NAMES)
def test_every_feature_of_an_episode(layouts, indexes, name):
    for split_name, episodes in layouts[name].truth.items():
        split = indexes[name].split(split_name)
        for number, (_, metadata) in enumerate(episodes):
            assert split.episodes.keys() | (indexes[name].skipped.keys() & metadata.keys()) == (
                metadata.keys()
            )
            for key, column in split.episodes.items():
                found = column[number : number + 1][0]
                assert_same(found, metadata[key], f"{split_name} {number} {key}")


@pytest.mark.parametrize("name", NAMES)
def test_every_image_is_the_stored_bytes(layouts, indexes, name):
    count = 0
    for split_name, episodes in layouts[name].truth.items():
        split = indexes[name].split(split_name)
        shards = [path.read_bytes() for path in split.shards]
        for number, (steps, _) in enumerate(episodes):
            data, first = shards[split.episode_shard[number]], split.episode_start[number]
            for key, image in split.images.items():
                for t, expected in enumerate(steps[key]):
                    start = image.offset[first + t]
                    assert data[start : start + image.length[first + t]] == expected
                    count += 1
    cameras = {"bridge": 4, "fractal": 1, "libero": 2, "odd": 3}[name]
    assert count == cameras * sum(split.num_frames for split in indexes[name].splits.values())


def test_image_sizes_are_those_of_the_headers(layouts, indexes):
    odd = indexes["odd"].split("train")
    ids = odd.episodes["episode_id"][0:3].tolist()
    widths = [10 + int(text.removeprefix(b"episode ")) for text in ids]
    rgb = odd.images["observation/rgb"]
    assert rgb.size_ehw.tolist() == [[8, width] for width in widths]
    assert (rgb.shape, rgb.dtype) == ((-1, -1, 3), "uint8")
    depth = odd.images["observation/depth"]
    assert depth.size_ehw.tolist() == [[8, 6]] * 3
    assert (depth.shape, depth.dtype) == ((8, 6, 1), "uint16")
    assert indexes["bridge"].split("train").images["observation/image_0"].shape == (
        24,
        32,
        3,
    )


def test_kinds_of_columns(indexes):
    bridge = indexes["bridge"].split("train")
    embedding = bridge.steps["language_embedding"]
    # Each of three episodes has one row.
    assert isinstance(embedding, Coded) and embedding.rows.shape == (3, 512)
    fractal = indexes["fractal"].split("train").steps["observation/natural_language_embedding"]
    assert fractal.rows.shape == (4, 512)
    odd = indexes["odd"].split("train")
    assert odd.steps["observation/instruction"].rows.shape == (2, 512)
    assert isinstance(odd.steps["numbers/float64"], Dense)
    ragged = odd.steps["words"]
    assert isinstance(ragged, Ragged) and isinstance(ragged.values, Text)
    texts = odd.steps["bytes"]
    assert isinstance(texts, Text) and texts.texts == (b"\xff\xfe not UTF-8",)


def test_columns_take_slices_and_integers(indexes):
    split = indexes["odd"].split("train")
    rows = np.array([5, 0, 5, 8])
    for key, column in split.steps.items():
        every = column[:]
        assert len(every) == len(column) == split.num_frames, key
        for found, row in zip(column[rows], rows, strict=True):
            assert_same(found, every[row], key)
        for found, row in zip(column[2:7], range(2, 7), strict=True):
            assert_same(found, every[row], key)


def test_the_toy_set_of_the_other_tests(toy, toy_index):
    assert toy_index.splits.keys() == toy.truth.keys() == {"train", "val"}
    for name, episodes in toy.truth.items():
        split = toy_index.splits[name]
        lengths = [len(episode["action"]) for episode in episodes]
        assert split.episode_start.tolist() == np.cumsum([0, *lengths]).tolist()
        assert split.frame_episode.tolist() == np.repeat(range(len(lengths)), lengths).tolist()
        for key, column in split.steps.items():
            expected = [value for episode in episodes for value in episode[key]]
            for found, value in zip(column[:], expected, strict=True):
                assert_same(np.asarray(found), np.asarray(value), key)
