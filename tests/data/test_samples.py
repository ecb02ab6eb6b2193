"""Samples against a step-by-step reading of the contract from what TFDS returns."""

import dataclasses

import numpy as np
import pytest
import simplejpeg

from imagewam_jax.data.anchors import frame_anchors
from imagewam_jax.data.errors import BadFrameError, DataError
from imagewam_jax.data.frames import ShardFiles
from imagewam_jax.data.index import open_index
from imagewam_jax.data.samples import SampleReader, augmentation_seeds
from tests.data.conftest import TOY, TOY_SAMPLE, flip_byte, train_shard

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
            for dim, relative in enumerate(TOY.relative_action_mask):
                if relative:
                    action[dim] = 0
        actions.append(action)
    target = step + horizon * stride
    images = [
        [simplejpeg.decode_jpeg(episode["encoded"][key][t]) for t in (step, min(target, steps - 1))]
        for _, key in TOY.image_keys
    ]
    return {
        "images": np.array(images),
        "camera_mask": np.array([True, True]),
        "target_is_pad": target >= steps,
        "actions": np.array(actions),
        "action_is_pad": np.array(action_is_pad),
        "action_dim_mask": np.ones(4, bool),
        "proprio": episode["observation/state"][step],
        "proprio_mask": np.ones(5, bool),
        "step": step,
    }


@pytest.mark.parametrize("horizon, stride", CHUNKS)
def test_every_sample_of_every_episode(toy, toy_index, horizon, stride):
    spec = dataclasses.replace(TOY_SAMPLE, horizon=horizon, stride=stride)
    padded = 0
    for name, episodes in toy.truth.items():
        reader = SampleReader(toy_index, name, TOY, spec, dataset_id=3, norm_id=2)
        batch = reader.read(frame_anchors(reader.split))
        row = 0
        for number, episode in enumerate(episodes):
            for step in range(len(episode["action"])):
                expected = expected_sample(episode, step, horizon, stride)
                for key, value in expected.items():
                    np.testing.assert_array_equal(batch[key][row], value, f"{name} {row} {key}")
                assert batch["episode"][row] == number
                text = toy_index.instructions[batch["text_id"][row]]
                assert text.encode() == episode["language_instruction"][step]
                padded += expected["action_is_pad"].sum()
                row += 1
        assert row == len(batch["images"])
        assert (batch["dataset_id"] == 3).all() and (batch["norm_id"] == 2).all()
        reader.close()
    assert (padded > 0) == (horizon > 1)


def test_types_and_shapes_are_those_of_the_contract(toy_index):
    batch = SampleReader(toy_index, "val", TOY, TOY_SAMPLE).read(np.array([0, 7]))
    found = {key: (value.dtype.name, value.shape) for key, value in batch.items()}
    assert found == {
        "images": ("uint8", (2, 2, 2, 32, 48, 3)),
        "camera_mask": ("bool", (2, 2)),
        "target_is_pad": ("bool", (2,)),
        "actions": ("float32", (2, 16, 4)),
        "action_is_pad": ("bool", (2, 16)),
        "action_dim_mask": ("bool", (2, 4)),
        "proprio": ("float32", (2, 5)),
        "proprio_mask": ("bool", (2, 5)),
    } | {key: ("int32", (2,)) for key in ("text_id", "dataset_id", "episode", "step", "norm_id")}


def test_wider_arrays_are_padded_and_masked(toy_index):
    narrow = SampleReader(toy_index, "val", TOY, TOY_SAMPLE).read(np.arange(6))
    spec = dataclasses.replace(TOY_SAMPLE, action_dim=7, state_dim=8)
    wide = SampleReader(toy_index, "val", TOY, spec).read(np.arange(6))
    for key, mask, width in (("actions", "action_dim_mask", 4), ("proprio", "proprio_mask", 5)):
        np.testing.assert_array_equal(wide[key][..., :width], narrow[key])
        assert not wide[key][..., width:].any()
        np.testing.assert_array_equal(wide[mask][0], np.arange(wide[key].shape[-1]) < width)


def test_cameras_come_in_the_order_asked_for(toy_index):
    both = SampleReader(toy_index, "val", TOY, TOY_SAMPLE).read(np.arange(3))["images"]
    spec = dataclasses.replace(TOY_SAMPLE, cameras=("wrist", "primary"))
    swapped = SampleReader(toy_index, "val", TOY, spec).read(np.arange(3))["images"]
    np.testing.assert_array_equal(swapped, both[:, ::-1])
    assert (both[:, 0] != both[:, 1]).any()


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"cameras": ("head",)}, r"no camera 'head', it has \['primary', 'wrist'\]"),
        (
            {"image_size": (64, 64)},
            r"images of \(32, 48\), the configured image_size is \(64, 64\)",
        ),
        ({"action_dim": 3}, "'action' has 4 dimensions, more than the configured action_dim 3"),
        ({"state_dim": 4}, "'observation/state' has 5 dimensions, more than .* state_dim 4"),
    ],
)
def test_a_specification_that_does_not_fit_the_set(toy_index, change, complaint):
    with pytest.raises(DataError, match=complaint):
        SampleReader(toy_index, "train", TOY, dataclasses.replace(TOY_SAMPLE, **change))


def test_a_relative_mask_of_another_width(toy_index):
    dataset = dataclasses.replace(TOY, relative_action_mask=(True,))
    with pytest.raises(DataError, match=r"'action' has 4 dimensions, .*relative_action_mask of 1"):
        SampleReader(toy_index, "train", dataset, TOY_SAMPLE)


def test_a_flipped_image_byte_names_exactly_its_frame(toy_copy):
    index = open_index(toy_copy, TOY)
    split = index.splits["train"]
    episode = int(np.argmax(np.diff(split.episode_start)))
    bad = int(split.episode_start[episode]) + 11
    column = split.images["observation/wrist_image"]
    shard = split.episode_shard[episode]
    flip_byte(train_shard(toy_copy, shard), int(column.offset[bad] + column.length[bad] // 2))
    spec = dataclasses.replace(TOY_SAMPLE, horizon=1)
    reader = SampleReader(index, "train", TOY, spec)
    complaint = (
        rf"bad image 'observation/wrist_image' in split 'train', episode {episode}, step 11 "
        rf".*0000{shard}-of-00003.*differ from their checksum"
    )
    for anchor in range(split.num_frames):
        if anchor in (bad, bad - 1):  # its current and its target image
            with pytest.raises(BadFrameError, match=complaint):
                reader.read(np.array([anchor]))
        else:
            reader.read(np.array([anchor]))


@pytest.mark.parametrize(
    "content, complaint",
    [
        (b"no JPEG at all", "not a readable JPEG"),
        (simplejpeg.encode_jpeg(np.zeros((32, 47, 3), np.uint8)), r"32x47, expected \(32, 48\)"),
    ],
    ids=["not a JPEG", "other size"],
)
def test_stored_bytes_that_are_no_image_of_that_size(toy_index, monkeypatch, content, complaint):
    reader = SampleReader(toy_index, "train", TOY, TOY_SAMPLE)
    monkeypatch.setattr(ShardFiles, "read", lambda *_: content)
    monkeypatch.setattr("imagewam_jax.data.frames.google_crc32c.value", lambda _: _SameChecksum())
    with pytest.raises(BadFrameError, match=complaint):
        reader.read(np.array([0]))


class _SameChecksum:
    def __ne__(self, _):
        return False


def test_anchors(toy, toy_index):
    split = toy_index.splits["train"]
    np.testing.assert_array_equal(frame_anchors(split), np.arange(split.num_frames))
    expected, start = [], 0
    for episode in toy.truth["train"]:
        steps = len(episode["action"])
        expected += [start + t for t in range(0, steps, 8)]
        start += steps
    np.testing.assert_array_equal(frame_anchors(split, every=8), expected)
    with pytest.raises(ValueError, match="every is 0"):
        frame_anchors(split, every=0)


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
