"""Samples against a step-by-step reading of the contract from what TFDS returns."""

import dataclasses
import json

import numpy as np
import pytest
import simplejpeg

from imagewam_jax.data.dataset_spec import Camera
from imagewam_jax.data.index.dataset_index import (
    META_FILE,
    default_index_dir,
    meta_checksum,
    open_index,
)
from imagewam_jax.data.loading.decode import Shards, _decode_jpeg
from imagewam_jax.data.loading.samples import (
    UNREADABLE,
    SampleReader,
    augmentation_seeds,
    empty_batch,
)
from imagewam_jax.errors import BadFrameError, DataError
from tests.data.conftest import flip_byte, train_shard
from tests.data.toy import TOY, TOY_SAMPLE, toy_data, toy_reader

# (horizon, stride): the toy episodes have 1 to 40 steps, so chunks end before, at and after them.
CHUNKS = [(16, 1), (4, 3), (1, 1), (5, 8)]


def expected_sample(episode, step, horizon, stride):
    """The contract, one number at a time."""
    steps = len(episode["action"])
    actions, action_is_pad = [], []
    for i in range(horizon):
        t = step + stride * i
        action_is_pad.append(t >= steps)
        action = episode["action"][min(t, steps - 1)].copy()
        if t >= steps:
            for dim, relative in enumerate(TOY.action.relative):
                if relative:
                    action[dim] = 0
        actions.append(action)
    target = step + horizon * stride
    times = (step, min(target, steps - 1))
    images = [
        [simplejpeg.decode_jpeg(episode["encoded"][camera.key][t]) for t in times]
        for _, camera in TOY.cameras
    ]
    return {
        "images": np.array(images),
        "image_size": [[32, 48], [32, 48]],
        "target_is_pad": target >= steps,
        "actions": np.array(actions),
        "action_is_pad": np.array(action_is_pad),
        "action_dim_mask": np.ones(4, bool),
        "proprio": episode["observation/state"][step],
        "step": step,
    }


@pytest.fixture
def of_val(toy, toy_index):
    """Readers of the split "val", with other sizes of a sample."""

    def make(**changes):
        sample = dataclasses.replace(TOY_SAMPLE, **changes)
        return toy_reader(toy_index, toy.dataset_dir, "val", sample=sample)

    return make


@pytest.fixture
def reader(of_val):
    return of_val()


@pytest.mark.parametrize("horizon, stride", CHUNKS)
def test_every_sample_of_every_episode(toy, toy_index, horizon, stride):
    sample = dataclasses.replace(TOY_SAMPLE, horizon=horizon, stride=stride)
    padded = 0
    for name, episodes in toy.truth.items():
        reader = toy_reader(toy_index, toy.dataset_dir, name, sample=sample, dataset_id=3)
        batch = reader.read(np.arange(reader.split.num_frames))
        row = 0
        for number, episode in enumerate(episodes):
            for step in range(len(episode["action"])):
                expected = expected_sample(episode, step, horizon, stride)
                for key, value in expected.items():
                    np.testing.assert_array_equal(batch[key][row], value, f"{name} {row} {key}")
                assert batch["episode"][row] == number
                padded += expected["action_is_pad"].sum()
                row += 1
        assert row == len(batch["images"])
        assert (batch["dataset_id"] == 3).all()
        reader.close()
    assert (padded > 0) == (horizon > 1)


def test_types_and_shapes_are_those_of_the_contract(reader):
    batch = reader.read(np.array([0, 7]))
    found = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert found == {
        "images": ("uint8", (2, 2, 2, 32, 48, 3)),
        "image_size": ("int32", (2, 2, 2)),
        "target_is_pad": ("bool", (2,)),
        "actions": ("float32", (2, 16, 4)),
        "action_is_pad": ("bool", (2, 16)),
        "action_dim_mask": ("bool", (2, 4)),
        "proprio": ("float32", (2, 5)),
    } | {key: ("int32", (2,)) for key in ("text_id", "dataset_id", "episode", "step")}


def test_wider_arrays_are_padded_and_masked(of_val):
    narrow = of_val().read(np.arange(6))
    wide = of_val(action_dim=7, state_dim=8).read(np.arange(6))
    for key, width in (("actions", 4), ("proprio", 5)):
        np.testing.assert_array_equal(wide[key][..., :width], narrow[key])
        assert not wide[key][..., width:].any()
    np.testing.assert_array_equal(wide["action_dim_mask"], [[True] * 4 + [False] * 3] * 6)


def test_cameras_come_in_the_order_asked_for(of_val):
    both = of_val().read(np.arange(3))["images"]
    swapped = of_val(cameras=("wrist", "primary")).read(np.arange(3))["images"]
    np.testing.assert_array_equal(swapped, both[:, ::-1])
    assert (both[:, 0] != both[:, 1]).any()


def test_a_larger_buffer_and_a_camera_that_is_not_there(of_val):
    """Images lie in its top left, with their size; the missing one is black."""
    small = of_val().read(np.arange(3))["images"]
    wanted = ("secondary", "wrist")
    batch = of_val(cameras=wanted, buffer_size=(40, 64)).read(np.arange(3))
    np.testing.assert_array_equal(batch["images"][:, 1, :, :32, :48], small[:, 1])
    assert not batch["images"][:, 1, :, 32:].any() and not batch["images"][:, 1, :, :, 48:].any()
    assert not batch["images"][:, 0].any()
    np.testing.assert_array_equal(batch["image_size"], [[[40, 64], [32, 48]]] * 3)


def test_memory_that_holds_other_images(of_val):
    """Old content shows neither beside smaller images nor in place of a missing camera."""
    reader = of_val(cameras=("secondary", "wrist"), buffer_size=(40, 64))
    sample = reader.sample
    used = empty_batch(3, sample, np.full((3, 2, 2, 40, 64, 3), 77, np.uint8))
    assert reader.fill(used, np.arange(3), np.arange(3)) == []
    new = reader.read(np.arange(3))
    assert not new["images"][:, 1, :, 32:].any() and not new["images"][:, 0].any()
    np.testing.assert_array_equal(used["images"], new["images"])


def test_cameras_that_are_stored_otherwise(toy, toy_index, of_val):
    """Blue first, or turned by 180 degrees, or both: samples are upright RGB."""
    plain = of_val().read(np.arange(4))["images"]
    cameras = (
        ("primary", Camera("observation/image", bgr=True, upside_down=True)),
        ("wrist", Camera("observation/wrist_image", upside_down=True)),
    )
    spec = dataclasses.replace(TOY, cameras=cameras)
    found = toy_reader(toy_index, toy.dataset_dir, "val", spec).read(np.arange(4))["images"]
    np.testing.assert_array_equal(found[:, 0], plain[:, 0, :, ::-1, ::-1, ::-1])
    np.testing.assert_array_equal(found[:, 1], plain[:, 1, :, ::-1, ::-1])
    larger = dataclasses.replace(TOY_SAMPLE, buffer_size=(40, 64))
    reader = toy_reader(toy_index, toy.dataset_dir, "val", spec, sample=larger)
    np.testing.assert_array_equal(reader.read(np.arange(4))["images"][..., :32, :48, :], found)


@pytest.mark.parametrize("rows, columns", [(7, 8), (31, 15), (1, 1)])
def test_turning_an_image_of_any_size(rows, columns):
    """Images whose bytes fill whole words of 8, and images whose bytes do not."""
    image = np.random.default_rng(0).integers(0, 256, (rows, columns, 3)).astype(np.uint8)
    content = simplejpeg.encode_jpeg(image)
    for buffer_size in ((rows, columns), (40, 48)):
        upright, turned = (np.zeros((*buffer_size, 3), np.uint8) for _ in range(2))
        assert _decode_jpeg(content, Camera("x"), upright) == (rows, columns)
        assert _decode_jpeg(content, Camera("x", upside_down=True), turned) == (rows, columns)
        found, expected = (i[:rows, :columns] for i in (turned, upright))
        np.testing.assert_array_equal(found, expected[::-1, ::-1])


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"action_dim": 3}, r"'toy_arm' has 4 dimensions \(toy\), more .* action_dim 3"),
        ({"state_dim": 4}, r"'toy_arm' has 5 dimensions \(toy\), more .* state_dim 4"),
    ],
)
def test_a_sample_that_is_too_narrow(of_val, change, complaint):
    with pytest.raises(DataError, match=complaint):
        of_val(**change)


def test_a_flipped_image_byte_names_exactly_its_frame(toy_copy):
    index = open_index(toy_copy)
    split = index.splits["train"]
    episode = int(np.argmax(np.diff(split.episode_start)))
    bad = int(split.episode_start[episode]) + 11
    column = split.images["observation/wrist_image"]
    shard = split.episode_shard[episode]
    flip_byte(train_shard(toy_copy, shard), int(column.offset[bad] + column.length[bad] // 2))
    sample = dataclasses.replace(TOY_SAMPLE, horizon=1)
    reader = toy_reader(index, toy_copy, "train", sample=sample)
    complaint = (
        rf"bad image 'observation/wrist_image' in split 'train', episode {episode}, step 11 "
        rf".*0000{shard}-of-00003.*differ from their checksum"
    )
    for start in range(split.num_frames):
        if start in (bad, bad - 1):  # as its current image, and as its target image
            with pytest.raises(BadFrameError, match=complaint):
                reader.read(np.array([start]))
        else:
            reader.read(np.array([start]))


def test_an_image_of_another_size_than_its_episode_s(toy, toy_index):
    """A batch would have it in a corner, with the size of the other moment's image."""
    split = toy_index.splits["train"]
    column = split.images["observation/image"]
    sizes = np.array(column.size_ehw)
    sizes[1] -= [16, 24]
    images = {**split.images, "observation/image": dataclasses.replace(column, size_ehw=sizes)}
    changed = dataclasses.replace(split, images=images)
    index = dataclasses.replace(toy_index, splits={**toy_index.splits, "train": changed})
    reader = toy_reader(index, toy.dataset_dir, "train")
    reader.read(split.episode_start[[0]])
    with pytest.raises(BadFrameError, match=r"episode 1, step 0 .* is 32x48, .* first image 16x24"):
        reader.read(split.episode_start[[1]])


def test_pixels_of_more_than_eight_bits(toy_copy):
    file = default_index_dir(toy_copy) / META_FILE
    meta = json.loads(file.read_text())
    meta["images"]["observation/image"]["dtype"] = "uint16"
    file.write_text(json.dumps({**meta, "checksum": meta_checksum(meta)}))
    with pytest.raises(DataError, match="'observation/image', whose pixels are uint16, expected"):
        toy_data(toy_copy)


def test_the_rest_of_a_batch_with_a_bad_frame_is_whole(toy, toy_copy):
    index = open_index(toy_copy)
    column = index.splits["train"].images["observation/image"]
    flip_byte(train_shard(toy_copy, 0), int(column.offset[2]) + 50)
    reader = toy_reader(index, toy_copy, "train")
    batch = empty_batch(4, TOY_SAMPLE)
    start_frames = np.array([60, 2, 70, 80])
    (bad,) = reader.fill(batch, np.arange(4), start_frames)
    assert bad[:3] == (1, 0, 0) and "differ from their checksum" in str(bad.error)
    assert (batch["images"][1, 0, 0] == UNREADABLE).all()
    truth = toy_reader(open_index(toy.dataset_dir), toy.dataset_dir, "train").read(start_frames)
    batch["images"][1, 0, 0] = truth["images"][1, 0, 0]
    for key, value in truth.items():
        np.testing.assert_array_equal(batch[key], value, err_msg=key)


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"no image at all", "JPEG"),
        (b"", "JPEG"),
        (b"\x89PNG\r\n\x1a\n and no more", "PNG"),
        (simplejpeg.encode_jpeg(np.zeros((32, 49, 3), np.uint8)), "32x49, expected at most 32x48"),
    ],
    ids=["no image", "nothing", "broken PNG", "too large"],
)
def test_stored_bytes_that_are_no_image_of_that_size(reader, monkeypatch, content, complaint):
    monkeypatch.setattr(Shards, "read", lambda *_: content)
    monkeypatch.setattr(
        "imagewam_jax.data.loading.decode.google_crc32c.value", lambda _: _SameChecksum()
    )
    with pytest.raises(BadFrameError, match=f"episode 0, step 0 .*{complaint}"):
        reader.read(np.array([0]))


class _SameChecksum:
    def __ne__(self, _):
        return False


def test_instructions_that_say_the_same_are_chosen_by_seed(reader):
    """Every one of them, the last too; a seed always chooses the same."""
    ids = np.array([[4, 7, 9], [5, -1, -1], [2, 3, -1]], np.int32)
    ids = np.resize(ids, (len(reader.standardized.text_ids), 3))
    standardized = dataclasses.replace(reader.standardized, text_ids=ids)
    rows = np.arange(100, 110, dtype=np.int32)
    changed = SampleReader(reader.split, standardized, TOY, TOY_SAMPLE, text_rows=rows)
    seeds = np.arange(30, dtype=np.uint32)
    for frame, texts in enumerate(([104, 107, 109], [105], [102, 103])):
        batch = empty_batch(30, TOY_SAMPLE)
        changed.fill(batch, np.arange(30), np.full(30, frame), seeds)
        assert set(batch["text_id"].tolist()) == set(texts)
        assert (batch["text_id"][:3] == batch["text_id"][6:9]).all()
    np.testing.assert_array_equal(changed.read(np.arange(3))["text_id"], [104, 105, 102])


def test_augmentation_seeds_differ_by_sample_and_by_run():
    index = np.arange(10_000)
    seeds = augmentation_seeds(0, index)
    assert seeds.dtype == np.uint32
    assert len(np.unique(seeds)) > 9_990  # 32 bits: about 0.01 collisions are expected
    assert (seeds != augmentation_seeds(1, index)).mean() > 0.999
    np.testing.assert_array_equal(augmentation_seeds(0, index[500:600]), seeds[500:600])
    # Bits are balanced, so a key derived from any part of them is sound.
    bits = np.unpackbits(seeds.view(np.uint8)).reshape(-1, 32).mean(axis=0)
    assert abs(bits - 0.5).max() < 0.03
