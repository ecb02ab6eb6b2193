"""The check of a dataset: each kind of damage is found where it was put, and nothing else."""

import numpy as np
import pytest
import simplejpeg

from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import default_index_dir, open_index
from imagewam_jax.data.tools.check import PLACES, check_dataset, is_instruction
from imagewam_jax.data.transforms.standardize import standardize
from tests.data.conftest import flip_byte, train_shard
from tests.data.toy import TOY
from tests.data.write_records import bytes_list, float_list, int64_list, write_set


def check(folder, **options):
    return check_dataset(folder, progress=False, **options)


def found(report):
    """{(problem, key): [(episode, step)]}"""
    return {(f.problem, f.key): [(p.episode, p.step) for p in f.places] for f in report.findings}


def jpeg(value, height=8, width=12):
    image = np.full((height, width, 3), value, np.uint8)
    return simplejpeg.encode_jpeg(image, colorspace="RGB")


FEATURES = {
    "image": {"image": {"shape": {"dimensions": ["8", "12", "3"]}}},
    "action": {"tensor": {"dtype": "float32", "shape": {"dimensions": ["2"]}}},
    "language_instruction": {"text": {}},
    "note": {"text": {}},
}


def episode(steps, **changes):
    images = [jpeg(50 + t) for t in range(steps)]
    values = {
        "image": bytes_list(*images),
        "action": float_list(*range(2 * steps)),
        "language_instruction": bytes_list(*[b"go"] * steps),
        "note": bytes_list(*[b""] * steps),
    }
    return {f"steps/{key}": value for key, value in (values | changes).items()}


def test_images_of_no_bytes_are_no_fault(tmp_path):
    images = bytes_list(jpeg(50), b"", jpeg(60))
    folder = write_set(tmp_path, FEATURES, [[episode(3), episode(3, image=images)]])
    report = check(folder)
    assert not report.bad and report.images == 5
    assert found(report)["no image", "image"] == [(1, 1)]


def test_sets_as_tfds_writes_them_are_good(layouts, toy):
    for name, cameras in (("bridge", 4), ("fractal", 1), ("libero", 2), ("odd", 3)):
        report = check(layouts[name].dataset_dir)
        assert not report.bad, report.text()
        assert report.images == cameras * report.frames
        assert report.episodes == sum(map(len, layouts[name].truth.values()))
    # The second episode of this set has no instruction and one step.
    report = check(layouts["bridge"].dataset_dir)
    order = [s["language_instruction"][0] for s, _ in layouts["bridge"].truth["train"]]
    empty = order.index(b"")
    assert found(report) == {
        ("empty instruction", "language_instruction"): [(empty, 0)],
        ("one step", ""): [(empty, None)],
    }
    assert "nothing is bad" in report.text()
    assert not check(toy.dataset_dir).bad


def test_episodes_without_steps_and_lists_that_are_empty_through_an_episode(tmp_path):
    row = {"tensor": {"dtype": "float32", "shape": {"dimensions": ["2"]}}}
    text = {"text": {}}
    features = FEATURES | {
        "forces": {"sequence": {"feature": row, "length": "-1"}},
        "words": {"sequence": {"feature": text, "length": "-1"}},
        "two_instructions": {"tensor": {"dtype": "string", "shape": {"dimensions": ["2"]}}},
    }

    def lists(steps, forces=(), counts=None, words=()):
        counts = [0] * steps if counts is None else counts
        return {
            "steps/forces/ragged_flat_values": float_list(*forces),
            "steps/forces/ragged_row_lengths_0": int64_list(*counts),
            "steps/words/ragged_flat_values": bytes_list(*words),
            "steps/words/ragged_row_lengths_0": int64_list(*([0] * steps)),
            "steps/two_instructions": bytes_list(*[b"a", b"b"] * steps),
        }

    episodes = [
        episode(2) | lists(2),
        episode(0) | lists(0),
        episode(3) | lists(3, (1, 2, np.nan, 4), (0, 1, 1)),
    ]
    report = check(write_set(tmp_path, features, [episodes]))
    assert found(report) == {
        ("not finite", "forces"): [(2, 2)],
        ("no steps", ""): [(1, None)],
    }
    index = build_index(tmp_path, progress=False).split("train")
    assert [len(row) for row in index.steps["forces"][:]] == [0, 0, 0, 1, 1]
    assert index.episode_start.tolist() == [0, 2, 2, 5]


def test_shards_that_are_not_there(toy_copy):
    train_shard(toy_copy, 1).unlink()
    report = check(toy_copy)
    assert report.bad and ("missing", "") in found(report)
    assert "train (toy_arm-train.tfrecord-00001-of-00003): missing" in report.text()
    build_index(toy_copy, progress=False, available_shards=True)
    report = check(toy_copy)
    assert not report.bad, report.text()
    assert found(report)["left out", ""] == [(-1, None)]


def test_everything_that_is_wrong_inside_of_good_records(tmp_path):
    shards = [
        [episode(3), episode(3, action=float_list(0, 1, np.nan, 3, 4, np.inf))],
        [
            episode(3, image=bytes_list(jpeg(0), jpeg(9)[:-40], b"no image")),
            episode(3, image=bytes_list(jpeg(9), jpeg(9, 8, 16), jpeg(9))),
            episode(3, language_instruction=bytes_list(b"", b"\xff", b"  ")),
            episode(1),
            episode(200),
            episode(2, action=float_list(1, 2, 3)),
        ],
    ]
    report = check(write_set(tmp_path, FEATURES, shards))
    assert report.bad and "something is bad" in report.text()
    assert (report.shards, report.episodes) == (2, 8)
    assert found(report) == {
        ("unreadable", "action"): [(7, None)],
        ("bad frame", "image"): [(2, 1), (2, 2), (3, 1)],
        ("not finite", "action"): [(1, 1), (1, 2)],
        ("all-zero image", "image"): [(2, 0)],
        ("empty instruction", "language_instruction"): [(4, 0), (4, 2)],
        ("not UTF-8", "language_instruction"): [(4, 1)],
        ("length", ""): [(6, None)],
        ("one step", ""): [(5, None)],
    }
    places = {p.step: p.why for f in report.findings if f.problem == "bad frame" for p in f.places}
    assert places[2] == "8 bytes that are neither a JPEG nor a PNG"
    assert "8x16, expected 8x12" in report.text()


def test_many_findings_are_counted_and_the_first_are_named(tmp_path):
    steps = PLACES + 30
    bad = episode(steps, action=float_list(*[np.nan] * 2 * steps))
    (finding,) = check(write_set(tmp_path, FEATURES, [[bad, bad]])).findings
    assert finding.count == 2 * steps and len(finding.places) == PLACES


@pytest.mark.parametrize("workers", [1, 2])
def test_damage_does_not_hide_what_lies_behind_it(toy_copy, toy_index, workers):
    split = toy_index.split("train")
    first, second, third = (np.flatnonzero(split.episode_shard == s) for s in range(3))
    # Inside of the second step's image; a record's length; a cut-off end; a shard that is gone.
    frame = int(split.episode_start[first[0]])
    image = split.images["observation/wrist_image"]
    frame += int(np.diff(split.episode_start)[first[0]]) - 1
    flip_byte(train_shard(toy_copy, 0), int(image.offset[frame]) + 30)
    flip_byte(train_shard(toy_copy, 1), int(split.record_offset[second[1]]) - 12)
    shard = train_shard(toy_copy, 2)
    shard.write_bytes(shard.read_bytes()[:-10])
    (toy_copy / "toy_arm-val.tfrecord-00001-of-00003").unlink()
    report = check(toy_copy, workers=workers)
    assert report.bad
    places = next(f.places for f in report.findings if f.problem == "unreadable")
    where = [(p.shard, p.record) for p in places if "dataset_info" not in p.why]
    assert where == [
        (train_shard(toy_copy, 0).name, 0),
        (train_shard(toy_copy, 1).name, 1),
        (train_shard(toy_copy, 2).name, len(third) - 1),
    ]
    (missing,) = (f for f in report.findings if f.problem == "missing")
    assert [(p.split, p.shard) for p in missing.places] == [
        ("val", "toy_arm-val.tfrecord-00001-of-00003")
    ]
    assert "unreadable from here: the record length at byte" in places[1].why
    # 12 episodes: one flipped, two behind the length, one cut off, one in the lost shard.
    assert report.episodes == 12 - 1 - (len(second) - 1) - 1 - 1
    # The index no longer fits the truncated shard, which is said too.
    assert ("index", "") in found(report)


def test_in_a_damaged_record_the_index_names_the_bad_frame(toy_copy, toy_index):
    split = toy_index.split("train")
    episode = int(np.argmax(np.diff(split.episode_start)))
    frame = int(split.episode_start[episode]) + 7
    shard = split.shards[split.episode_shard[episode]].name
    flip_byte(toy_copy / shard, int(split.images["observation/image"].offset[frame]) + 30)
    places = found(check(toy_copy))
    assert places["bad frame", "observation/image"] == [(episode, 7)]
    assert places["unreadable", ""] == [(episode, None)]


def test_an_image_other_than_the_indexed_one(tmp_path):
    folder = write_set(tmp_path, FEATURES, [[episode(2)]])
    build_index(folder, progress=False)
    assert not check(folder).bad
    write_set(tmp_path, FEATURES, [[episode(2, image=bytes_list(jpeg(50), jpeg(51)[::-1]))]])
    report = check(folder)
    assert ("index", "") in found(report) and "the shard was replaced" in report.text()
    assert found(report)["bad frame", "image"] == [(0, 1)]


def test_a_flipped_bit_in_an_index_and_in_standardized_episodes(toy_copy):
    """Numbers that are read as they are: nothing else would notice."""
    assert not check(toy_copy).bad
    index = open_index(toy_copy)
    standardized = standardize(index, TOY, default_index_dir(toy_copy), progress=False)
    column = default_index_dir(toy_copy) / "splits/train/steps/action.values.npy"
    cache = default_index_dir(toy_copy) / f"standardized/toy_arm-{standardized.digest}"
    actions = cache / "train/actions.npy"
    for file in (column, actions):
        flip_byte(file, file.stat().st_size - 5)
    report = check(toy_copy)
    assert report.bad and len(found(report)["index", ""]) == 2
    assert f"{column}: not what was written; index again" in report.text()
    assert f"{actions}: not what was written; remove its folder" in report.text()


def test_what_is_taken_for_an_instruction():
    keys = ("language_instruction", "observation/natural_language_instruction", "instruction")
    assert all(map(is_instruction, keys))
    assert not is_instruction("episode_metadata/file_path")
