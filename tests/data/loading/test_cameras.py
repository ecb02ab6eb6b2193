"""Images as tensors and sequences, in TFRecord and ArrayRecord, against what TFDS decodes."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from imagewam_jax.data.dataset_spec import Camera
from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import open_index
from imagewam_jax.data.loading.decode import Shards, decode_frame, request_frames
from imagewam_jax.data.tools.check import check_dataset
from imagewam_jax.errors import BadFrameError, DataError
from tests.data.conftest import flip_byte

# Camera -> the feature of TFDS, and the image in it.
CAMERAS = {
    "png": ("png", None),
    "pixels": ("pixels", None),
    "grey_zlib": ("grey_zlib", None),
    "rgba_bytes": ("rgba_bytes", None),
    "stack/0": ("stack", 0),
    "stack/1": ("stack", 1),
    "images/0": ("images", 0),
    "images/1": ("images", 1),
    "images/2": ("images", 2),
    "tensors/0": ("tensors", 0),
    "tensors/1": ("tensors", 1),
    "arms/view/0": ("arms/view", 0),
    "arms/view/1": ("arms/view", 1),
    "label": ("label", None),
}
SKIPPED = {
    "stack_zlib": "stacked images stored as zlib are not read; ",
    "open_zlib": "the shape (-1, -1, 3) varies beyond its first dimension; ",
    "channels_first": "4800 numbers in a row, more than 4096; ",
    "float": "4800 numbers in a row, more than 4096; ",
}
AS_IMAGE = "write it as tfds.features.Image to use it as a camera"


@pytest.fixture(scope="module")
def indexes(cameras, tmp_path_factory):
    folder = tmp_path_factory.mktemp("indexes")
    return {
        name: build_index(layout.dataset_dir, folder / name, progress=False)
        for name, layout in cameras.items()
    }


@pytest.fixture
def array_copy(cameras, tmp_path):
    """A copy of the set of ArrayRecord files, that a test may damage, and its index."""
    copy = shutil.copytree(cameras["cameras_array"].dataset_dir, tmp_path / "1.0.0")
    return copy, build_index(copy, progress=False)


def decode(split, key, frame, files=None, camera=None):
    out = np.full((10, 12, 3), 77, np.uint8)
    camera = camera or Camera(f"observation/{key}")
    (stored,) = request_frames(split, files or Shards(split.shards), [(camera, frame)])
    assert decode_frame(split, stored, out) == (10, 12)
    return out


@pytest.mark.parametrize("name", ["cameras", "cameras_array"])
def test_every_pixel_is_what_tfds_decodes(cameras, indexes, name):
    assert indexes[name].splits.keys() == cameras[name].truth.keys()
    for split_name, episodes in cameras[name].truth.items():
        split = indexes[name].split(split_name)
        assert split.images.keys() == {f"observation/{key}" for key in CAMERAS}
        steps = [step for episode in episodes for step in episode]
        lengths = [len(episode) for episode in episodes]
        assert split.episode_start.tolist() == np.cumsum([0, *lengths]).tolist()
        files = Shards(split.shards)
        for key, (feature, number) in CAMERAS.items():
            for frame, step in enumerate(steps):
                expected = step[f"observation/{feature}"]
                expected = expected if number is None else expected[number]
                expected = np.broadcast_to(expected[..., :3], (10, 12, 3))
                np.testing.assert_array_equal(decode(split, key, frame, files), expected, key)
        forces = split.steps["observation/arms/force"][:]
        for frame, step in enumerate(steps):
            assert forces[frame].tolist() == step["observation/arms/force"].tolist()
            assert split.steps["empty"][frame : frame + 1][0].shape == (0,)
        files.close()


@pytest.mark.parametrize("name", ["cameras", "cameras_array"])
def test_what_is_not_read_is_named_with_what_to_do(indexes, name):
    skipped = dict(indexes[name].skipped)
    sometimes = skipped.pop("steps/observation/sometimes")
    assert sometimes == (
        "a sequence of images whose number per step is not declared and not always the same"
    )
    assert skipped == {f"steps/observation/{k}": v + AS_IMAGE for k, v in SKIPPED.items()}


def test_the_check_decodes_them(cameras):
    for layout in cameras.values():
        report = check_dataset(layout.dataset_dir, progress=False)
        assert not report.bad, report.text()
        assert report.images == len(CAMERAS) * report.frames


def test_channels_and_turns_of_a_tensor(cameras, indexes):
    split = indexes["cameras"].split("val")
    stored = cameras["cameras"].truth["val"][0][0]["observation/pixels"]
    camera = Camera("observation/pixels", bgr=True, upside_down=True)
    found = decode(split, "pixels", 0, camera=camera)
    np.testing.assert_array_equal(found, stored[::-1, ::-1, ::-1])


def test_both_file_formats_give_the_same_index(indexes):
    first, second = (indexes[name] for name in ("cameras", "cameras_array"))
    for name, split in first.splits.items():
        other = second.split(name)
        assert (split.file_format, other.file_format) == ("tfrecord", "array_record")
        assert [*map(len, (split.shards, other.shards))] == [2, 2]
        assert split.record_length.tolist() == other.record_length.tolist()
        for key, column in split.images.items():
            assert column.crc32c.tolist() == other.images[key].crc32c.tolist()
            assert column.encoding == other.images[key].encoding


def test_workers_and_a_second_build_give_the_same_index_of_array_records(array_copy):
    copy, index = array_copy
    assert build_index(copy, workers=2, progress=False).checksum == index.checksum
    assert open_index(copy).checksum == index.checksum


def test_a_sequence_of_a_declared_length(cameras, tmp_path):
    """TFDS writes such a sequence as one of an open length, and cannot read it itself."""
    copy = shutil.copytree(cameras["cameras"].dataset_dir, tmp_path / "1.0.0")
    features = json.loads((copy / "features.json").read_text())
    steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
    observation = steps["featuresDict"]["features"]["observation"]["featuresDict"]["features"]
    observation["images"]["sequence"]["length"] = "3"
    # Not what the records hold: it is named and left out.
    observation["tensors"]["sequence"]["length"] = "4"
    (copy / "features.json").write_text(json.dumps(features))
    index = build_index(copy, progress=False)
    found = decode(index.split("val"), "images/2", 1)
    truth = cameras["cameras"].truth["val"][0][1]["observation/images"]
    np.testing.assert_array_equal(found, truth[2])
    reason = index.skipped["steps/observation/tensors/3"]
    assert reason == "there are not 4 images in each step of 5 of 5 episodes"


def test_a_damaged_record_is_named_and_not_indexed(array_copy):
    copy, index = array_copy
    split = index.split("train")
    shard, record = split.shards[0], 0
    flip_byte(shard, int(split.record_offset[record]) + 60)
    with pytest.raises(DataError, match=r"00000-of-00002: record 0 cannot be read: Corrupted .*ha"):
        build_index(copy, progress=False)
    with pytest.raises(BadFrameError, match=r"episode 0, step 1 .*its record: Corrupted"):
        decode(split, "pixels", 1)
    report = check_dataset(copy, progress=False)
    places = {f.problem: f.places[0] for f in report.findings}
    assert (places["unreadable"].record, places["unreadable"].split) == (0, "train")


def test_a_replaced_array_record_file_is_noticed(array_copy):
    """The new file has the size of the old one; the hash in a chunk's header differs."""
    copy, index = array_copy
    split = index.split("train")
    flip_byte(split.shards[0], int(split.record_offset[0]) + 16)
    with pytest.raises(DataError, match=r"the shard was replaced; rebuild with: imagewam data ind"):
        open_index(copy)


@pytest.mark.parametrize("cut", [1, 70_000])
def test_a_truncated_array_record_file(array_copy, cut):
    copy, index = array_copy
    shard = index.split("train").shards[1]
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"00001-of-00002: not a whole ArrayRecord file: .*availab"):
        build_index(copy, progress=False)
    with pytest.raises(DataError, match=r"00001-of-00002: \d+ bytes, the index was built over"):
        open_index(copy)


def test_bytes_that_are_another_image_are_a_bad_frame(indexes):
    split = indexes["cameras"].split("val")
    column = split.images["observation/grey_zlib"]
    wrong = dataclasses.replace(column, shape=(10, 13, 1))
    images = split.images | {"observation/grey_zlib": wrong}
    (stored,) = request_frames(split, Shards(split.shards), [(Camera("observation/grey_zlib"), 0)])
    wrong_split = dataclasses.replace(split, images=images)
    with pytest.raises(BadFrameError, match=r"a uint8 tensor: 120 numbers, expected the shape"):
        decode_frame(wrong_split, stored, np.zeros((10, 13, 3), np.uint8))
