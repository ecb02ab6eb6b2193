"""The index against what TFDS reads, and everything it must refuse."""

import dataclasses
import json
import os
import shutil
import sys

import numpy as np
import pytest
import simplejpeg

from imagewam_jax.data import index_builder
from imagewam_jax.data.errors import DataError
from imagewam_jax.data.frames import ShardFiles, decode_frame
from imagewam_jax.data.index import META_FILE, default_index_dir, open_index
from imagewam_jax.data.index_builder import build_index
from tests.data.conftest import TOY, flip_byte, train_shard


def build(dataset_dir, spec=TOY, **options):
    return build_index(dataset_dir, spec, progress=False, **options)


def test_every_feature_equals_what_tfds_reads(toy, toy_index):
    assert toy_index.instructions == ("put the cup left", "öffne die Tür")
    assert toy_index.splits.keys() == toy.truth.keys() == {"train", "val"}
    for name, episodes in toy.truth.items():
        split = toy_index.splits[name]
        assert split.num_episodes == len(episodes)
        np.testing.assert_array_equal(
            np.diff(split.episode_start), [len(e["action"]) for e in episodes]
        )
        assert split.features.keys() == {
            "action",
            "observation/state",
            "is_first",
            "is_last",
            "is_terminal",
            "reward",
            "discount",
        }
        for key, found in split.features.items():
            expected = np.concatenate([episode[key] for episode in episodes])
            assert found.dtype == expected.dtype, key
            np.testing.assert_array_equal(found, expected, err_msg=key)
        texts = [text.decode() for e in episodes for text in e["language_instruction"]]
        assert [toy_index.instructions[i] for i in split.text_id] == texts


@pytest.mark.parametrize("key", [key for _, key in TOY.image_keys])
def test_every_image_is_the_stored_jpeg(toy, toy_index, key):
    for name, episodes in toy.truth.items():
        split = toy_index.splits[name]
        files = ShardFiles(split.shards)
        expected = [jpeg for episode in episodes for jpeg in episode["encoded"][key]]
        assert len(expected) == split.num_frames
        assert split.images[key].shape == (32, 48, 3)
        for frame, jpeg in enumerate(expected):
            shard = split.episode_shard[split.frame_episode[frame]]
            column = split.images[key]
            assert files.read(shard, column.offset[frame], column.length[frame]) == jpeg
            image = np.empty((32, 48, 3), np.uint8)
            decode_frame(split, files, key, frame, image)
            np.testing.assert_array_equal(image, simplejpeg.decode_jpeg(jpeg))
        files.close()


def test_worker_processes_give_the_same_index(toy, toy_index, tmp_path):
    parallel = build(toy.dataset_dir, index_dir=tmp_path / "index", workers=2)
    assert parallel.checksum == toy_index.checksum
    default = default_index_dir(toy.dataset_dir, TOY)
    for column in sorted(default.glob("*/*.npy")):
        other = tmp_path / "index" / column.relative_to(default)
        assert other.read_bytes() == column.read_bytes(), column.name


def test_a_worker_s_error_and_a_worker_s_death_are_one_clear_error(toy_copy, monkeypatch):
    flip_byte(train_shard(toy_copy, 1), 5000)
    with pytest.raises(DataError, match=r"train.tfrecord-00001-of-00003: .*their checksum"):
        build(toy_copy, workers=2)
    # What a program from a pipe is to a new process: one that is not there.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "absent.py", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(DataError, match=r"an indexing process died.*use workers=1"):
        build(toy_copy, workers=2)


def test_the_checksum_does_not_depend_on_where_the_set_lies(toy_copy, toy_index):
    assert build(toy_copy).checksum == toy_index.checksum


def test_an_index_is_replaced_whole_and_leaves_nothing_behind(toy_copy):
    build(toy_copy)
    folder = default_index_dir(toy_copy, TOY).parent
    assert os.listdir(folder) == [TOY.name]


def test_a_failed_build_keeps_the_old_index_and_cleans_up(toy_copy, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_builder.np, "save", no_space)
    with pytest.raises(DataError, match=r"could not write the index .*No space left on device"):
        build(toy_copy)
    assert os.listdir(default_index_dir(toy_copy, TOY).parent) == [TOY.name]
    open_index(toy_copy, TOY)


# Faults of the dataset.


def test_a_folder_that_is_not_rlds(tmp_path):
    with pytest.raises(DataError, match=r"not a TFDS version folder: no features.json; found"):
        build(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        build(tmp_path / "absent")


def edit_json(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_tfds_set_without_steps(toy_copy):
    def drop_steps(features):
        del features["featuresDict"]["features"]["steps"]

    edit_json(toy_copy / "features.json", drop_steps)
    with pytest.raises(DataError, match=r"not RLDS: .*'steps', it has \['episode_metadata'\]"):
        build(toy_copy)


def test_another_file_format(toy_copy):
    edit_json(toy_copy / "dataset_info.json", lambda info: info.update(fileFormat="array_record"))
    with pytest.raises(DataError, match="fileFormat is 'array_record', expected 'tfrecord'"):
        build(toy_copy)


@pytest.mark.parametrize(
    "change, complaint",
    [
        (
            {"image_keys": (("primary", "observation/rgb"),)},
            r"camera 'primary' of 'toy_arm': no step feature 'observation/rgb'; the image features "
            r"are \['observation/image', 'observation/wrist_image'\]",
        ),
        (
            {"image_keys": (("primary", "observation/state"),)},
            "a tensor feature at 'observation/state'; the image features",
        ),
        ({"state_key": "state"}, r"state of .*'state'; the tensor features are \['action'"),
        ({"action_key": "actions"}, "action of .*no step feature 'actions'"),
        ({"language_key": "text"}, r"language of .*the text features are \['language_instruction'"),
        (
            {"relative_action_mask": (True,) * 7},
            "'action' has 4 dimensions, .* a relative_action_mask of 7",
        ),
        ({"state_key": "reward"}, r"'reward' has the shape \(\), expected \(n,\)"),
    ],
)
def test_a_key_that_does_not_fit_names_what_is_there(toy, tmp_path, change, complaint):
    with pytest.raises(DataError, match=complaint):
        build(toy.dataset_dir, dataclasses.replace(TOY, **change), index_dir=tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_encoding_that_is_not_read(toy_copy):
    text = (toy_copy / "features.json").read_text()
    (toy_copy / "features.json").write_text(text.replace('"jpeg"', '"png"'))
    with pytest.raises(DataError, match="'observation/image' is stored as png, not as JPEG"):
        build(toy_copy)


def test_declared_sizes_that_the_records_do_not_have(toy_copy):
    text = (toy_copy / "features.json").read_text()
    (toy_copy / "features.json").write_text(text.replace('"48"', '"64"'))
    with pytest.raises(DataError, match=r"record 0 .*'observation/image' is 32x48.*\(32, 64, 3\)"):
        build(toy_copy)


def test_an_action_dimension_that_the_records_do_not_have(toy_copy):
    text = (toy_copy / "features.json").read_text()
    (toy_copy / "features.json").write_text(text.replace('"4"', '"3"'))
    spec = dataclasses.replace(TOY, relative_action_mask=(True,) * 3)
    with pytest.raises(DataError, match=r"00000-of-00003: record 0 .* numbers in 'action'"):
        build(toy_copy, spec)


def test_a_flipped_byte(toy_copy):
    flip_byte(train_shard(toy_copy, 1), 5000)
    with pytest.raises(DataError, match=r"train.tfrecord-00001-of-00003: .*their checksum"):
        build(toy_copy)


def test_a_truncated_shard(toy_copy):
    shard = train_shard(toy_copy, 2)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train.tfrecord-00002-of-00003: truncated at byte"):
        build(toy_copy)


def test_a_shard_that_ends_between_two_records(toy_copy, toy_index):
    split = toy_index.splits["train"]
    second = np.flatnonzero(split.episode_shard == 1)[1]
    shard = train_shard(toy_copy, 1)
    shard.write_bytes(shard.read_bytes()[: split.record_offset[second] - 12])
    with pytest.raises(DataError, match=r"1 records, dataset_info.json lists 3"):
        build(toy_copy)


def test_a_missing_shard(toy_copy):
    train_shard(toy_copy, 1).unlink()
    with pytest.raises(DataError, match=r"00001-of-00003: missing; .* lists 3 shards of split"):
        build(toy_copy)
    with pytest.raises(DataError, match=r"00001-of-00003: missing, but it is indexed"):
        open_index(toy_copy, TOY)


# Faults between an index and its shards.


def test_no_index(toy_copy):
    shutil.rmtree(default_index_dir(toy_copy, TOY))
    with pytest.raises(DataError, match=r"no index of .* build it with: imagewam index"):
        open_index(toy_copy, TOY)


def test_a_shard_that_was_truncated_later(toy_copy):
    shard = train_shard(toy_copy, 0)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"00000-of-00003: \d+ bytes, the index was built over"):
        open_index(toy_copy, TOY)


def test_a_shard_that_was_replaced_by_one_of_the_same_size(toy_copy, toy_index):
    split = toy_index.splits["train"]
    # As if the record's data and with it their checksum were others.
    flip_byte(train_shard(toy_copy, 0), int(split.record_offset[0] + split.record_length[0]))
    with pytest.raises(
        DataError, match=r"00000-of-00003: .* the shard was replaced; build it with"
    ):
        open_index(toy_copy, TOY)


def test_an_index_of_other_keys(toy_copy):
    other = dataclasses.replace(TOY, image_keys=TOY.image_keys[:1])
    with pytest.raises(DataError, match=r"indexes the keys .* asks for"):
        open_index(toy_copy, other)


def test_an_index_of_another_format_or_edited(toy_copy):
    meta = default_index_dir(toy_copy, TOY) / META_FILE
    edit_json(meta, lambda content: content.update(instructions=["a", "b"]))
    with pytest.raises(DataError, match=r"meta\.json differs from its own checksum"):
        open_index(toy_copy, TOY)
    edit_json(meta, lambda content: content.update(format=0))
    with pytest.raises(DataError, match="index format 0, expected 1; build it with"):
        open_index(toy_copy, TOY)


def test_an_index_that_lost_a_column(toy_copy):
    (default_index_dir(toy_copy, TOY) / "train" / "text_id.npy").unlink()
    with pytest.raises(DataError, match=r"text_id.npy: the index has lost a column"):
        open_index(toy_copy, TOY)


def test_an_unknown_split(toy_index):
    with pytest.raises(DataError, match=r"no split 'test', it has \['train', 'val'\]"):
        toy_index.split("test")
