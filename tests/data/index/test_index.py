"""Building and opening an index, and everything that must be refused."""

import errno
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile
import zlib

import numpy as np
import pytest

from imagewam_jax.data.index import build as index_builder
from imagewam_jax.data.index import shard_parts
from imagewam_jax.data.index import writer as index_writer
from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import META_FILE, default_index_dir, open_index
from imagewam_jax.data.index.shard_parts import PARTS_DIR, make_part, part_file
from imagewam_jax.data.index.tfds_folder import read_tfds_folder
from imagewam_jax.data.transforms.standardize import standardize
from imagewam_jax.errors import DataError
from imagewam_jax.files import SUMS_FILE
from tests.data.conftest import flip_byte, train_shard
from tests.data.toy import TOY
from tests.data.write_records import bytes_list, float_list, int64_list, write_set


def build(dataset_dir, index_dir=None, **options):
    return build_index(dataset_dir, index_dir, progress=False, **options)


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def index_files(folder):
    """The files of an index, without what other tests may have cached beside it."""
    caches = ("standardized/", "statistics/")
    return {name: data for name, data in tree(folder).items() if not name.startswith(caches)}


def test_worker_processes_give_the_same_index(toy, toy_index, tmp_path):
    parallel = build(toy.dataset_dir, tmp_path / "index", workers=2)
    assert parallel.checksum == toy_index.checksum
    assert index_files(tmp_path / "index") == index_files(default_index_dir(toy.dataset_dir))


def test_a_worker_s_error_and_a_worker_s_death_are_one_clear_error(toy_copy, monkeypatch):
    flip_byte(train_shard(toy_copy, 1), 5000)
    with pytest.raises(DataError, match=r"train.tfrecord-00001-of-00003: .*their checksum"):
        build(toy_copy, workers=2)
    # A program that comes from a pipe cannot be found by a new process.
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "absent.py", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(DataError, match=r"a process \(indexing\) died.*use workers=1"):
        build(toy_copy, workers=2)


def test_the_checksum_does_not_depend_on_where_the_set_lies(toy_copy, toy_index):
    assert build(toy_copy).checksum == toy_index.checksum


def test_an_index_is_replaced_whole_and_leaves_nothing_behind(toy_copy):
    before = index_files(toy_copy)
    build(toy_copy)
    assert index_files(toy_copy) == before


def test_columns_do_not_share_files(tmp_path):
    feature = {"tensor": {"dtype": "int64", "shape": {}}}
    features = {"a.b": feature, "a": {"featuresDict": {"features": {"b": feature}}}}
    example = {"steps/a.b": int64_list(1, 2), "steps/a/b": int64_list(3, 4)}
    split = build(write_set(tmp_path, features, [[example]])).split("train")
    assert split.steps["a.b"][:].tolist() == [1, 2]
    assert split.steps["a/b"][:].tolist() == [3, 4]


# Records that TFDS itself does not write or cannot read.

FLOAT = {"tensor": {"dtype": "float32", "shape": {}}}
TEXT = {"text": {}}
NUMBER, EMPTY = zlib.compress(np.float32(1).tobytes()), zlib.compress(b"")


def vector(size, **more):
    return {"tensor": {"dtype": "float32", "shape": {"dimensions": [str(size)]}, **more}}


def test_unpacked_numbers_and_a_sequence_of_fixed_length(tmp_path):
    features = {"x": FLOAT, "three": {"sequence": {"feature": FLOAT, "length": "3"}}}
    example = {
        "steps/x": float_list(0.5, -1.0, packed=False),
        "steps/three/ragged_flat_values": float_list(*range(6)),
        "steps/three/ragged_row_lengths_0": int64_list(3, 3, packed=False),
    }
    split = build(write_set(tmp_path, features, [[example]])).split("train")
    assert split.steps["x"][:].tolist() == [0.5, -1.0]
    assert split.steps["three"][:].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_feature_that_not_every_episode_has_is_skipped(tmp_path):
    features = {"x": FLOAT, "never": vector(2), "often": TEXT, "image": {"image": {}}}
    episodes = [
        {"steps/x": float_list(1, 2), "steps/often": bytes_list(b"a", b"b")},
        {"steps/x": float_list(3), "steps/never": float_list()},
    ]
    # Each shard lacks another feature, and both must be counted.
    index = build(write_set(tmp_path, features, [episodes[:1], episodes[1:]]))
    assert index.skipped == {
        "steps/never": "absent from 2 of 2 episodes",
        "steps/often": "absent from 1 of 2 episodes",
        "steps/image": "absent from 2 of 2 episodes",
    }
    assert index.split("train").steps["x"][:].tolist() == [1, 2, 3]


def test_an_episode_without_steps_has_no_frames(tmp_path):
    features = {"x": FLOAT, "word": TEXT}
    episodes = [{"steps/x": float_list(), "id": int64_list(7)}]
    episodes += [
        {"steps/x": float_list(1), "steps/word": bytes_list(b"a"), "id": int64_list(8)},
    ]
    folder = write_set(tmp_path, features, [episodes], {"id": {"tensor": {"dtype": "int64"}}})
    split = build(folder).split("train")
    assert split.episode_start.tolist() == [0, 0, 1]
    assert split.episodes["id"][:].tolist() == [7, 8]
    assert split.steps["word"][:].tolist() == [b"a"]


def test_features_that_are_not_read_are_skipped_with_the_reason(tmp_path):
    features = {
        "x": FLOAT,
        "film": {"pythonClassName": "tensorflow_datasets.core.features.video_feature.Video"},
        "new": {"something": {}},
        "odd": {"tensor": {"dtype": "bfloat16", "shape": {}}},
        "gzip": vector(2, encoding="gzip"),
        "open": vector(-1),
        "grid": {"tensor": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1"]}}},
        "points": vector(4097),
    }
    index = build(write_set(tmp_path, features, [[{"steps/x": float_list(1)}]]))
    assert {key.removeprefix("steps/"): reason for key, reason in index.skipped.items()} == {
        "film": "a feature 'Video' is not read",
        "new": "a feature 'of no known class' is not read",
        "odd": "the dtype bfloat16 is not read",
        "gzip": "the encoding 'gzip' is not read",
        "open": "a plain tensor of the open shape (-1,) inside of steps has no row ends",
        "grid": "the shape (-1, -1) varies beyond its first dimension",
        "points": "4097 numbers in a row, more than 4096",
    }


def test_wide_rows_are_told_apart_by_their_bits(tmp_path):
    rows = np.zeros((4, 64), "f4")
    rows[1, 0] = -0.0
    rows[2, 0] = np.nan
    rows[3] = rows[1]
    shards = [[{"steps/wide": float_list(*r.ravel())}] for r in (rows[:2], rows[1:], rows[::-1])]
    column = build(write_set(tmp_path, {"wide": vector(64)}, shards)).split("train").steps["wide"]
    expected = np.concatenate([rows[:2], rows[1:], rows[::-1]])
    assert column[:].tobytes() == expected.tobytes()
    assert len(column.rows) == 3


def test_a_first_frame_that_is_no_image_does_not_stop_the_index(tmp_path):
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (5).to_bytes(4, "big") + (3).to_bytes(4, "big")
    episodes = [
        {"steps/image": bytes_list(b"", b"not an image", png)},
        {"steps/image": bytes_list(b"\x89PNG\r\n\x1a\n")},
    ]
    image = build(write_set(tmp_path, {"image": {"image": {}}}, [episodes])).split("train").images
    assert image["image"].size_ehw.tolist() == [[3, 5], [0, 0]]
    assert image["image"].length.tolist() == [0, 12, 24, 8]


@pytest.mark.parametrize(
    "change, complaint",
    [
        ({"steps/action": float_list(*range(6))}, r"6 numbers in 'steps/action', expected 2 .*7"),
        ({"steps/x": float_list(1)}, r"14 numbers in 'steps/action', expected 1 steps of \(7,\)"),
        ({"steps/x": int64_list(1, 2)}, r"'steps/x' holds a list of int64, expected float"),
        ({"steps/words": int64_list(1, 2)}, r"'steps/words' holds a list of int64, expected byt"),
        ({"steps/image": bytes_list(b"")}, "1 images in 'steps/image', expected 2 steps"),
        ({"steps/z": bytes_list(b"xx", b"xx")}, "a tensor in 'steps/z' is not zlib"),
        ({"steps/z": bytes_list(NUMBER, NUMBER[:-1])}, "a tensor in 'steps/z' is cut off"),
        ({"steps/z": bytes_list(NUMBER, EMPTY)}, r"a tensor of 0 bytes in 'steps/z', expected fl"),
    ],
)
def test_a_record_that_disagrees_names_shard_record_and_key(tmp_path, change, complaint):
    """Among them an action whose dimension changes in the middle of a set."""
    good = {
        "steps/x": float_list(1, 2),
        "steps/action": float_list(*range(14)),
        "steps/words": bytes_list(b"a", b"b"),
        "steps/image": bytes_list(b"", b""),
        "steps/z": bytes_list(NUMBER, NUMBER),
    }
    features = {
        "x": FLOAT,
        "action": vector(7),
        "words": TEXT,
        "image": {"image": {}},
        "z": {"tensor": {"dtype": "float32", "shape": {}, "encoding": "zlib"}},
    }
    folder = write_set(tmp_path, features, [[good], [good, good | change]])
    with pytest.raises(DataError, match=complaint) as error:
        build(folder)
    assert "train.tfrecord-00001-of-00002: record 1 at byte" in str(error.value)


# Builds that are stopped.


def test_a_killed_build_goes_on_from_its_finished_shards(toy_copy, toy_index, monkeypatch):
    shutil.rmtree(default_index_dir(toy_copy))
    program = f"""
        import os, signal
        from imagewam_jax.data.index import build as index_builder
        from imagewam_jax.data.index import shard_parts
        read = shard_parts.index_shard
        def die_at_the_third(path, features):
            if "train.tfrecord-00002" in path.name:
                os.kill(os.getpid(), signal.SIGKILL)
            return read(path, features)
        shard_parts.index_shard = die_at_the_third
        index_builder.build_index({str(toy_copy)!r}, progress=False)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(DataError, match=r"an unfinished build is there.*rebuild with: imagewam da"):
        open_index(toy_copy)
    read = []
    real = shard_parts.index_shard

    def watch(path, features):
        read.append(path.name)
        return real(path, features)

    monkeypatch.setattr(shard_parts, "index_shard", watch)
    resumed = build(toy_copy)
    assert len(read) == 4 and "toy_arm-train.tfrecord-00000-of-00003" not in read
    assert resumed.checksum == toy_index.checksum
    index_dir = default_index_dir(toy_copy)
    assert sorted(os.listdir(index_dir)) == [SUMS_FILE, META_FILE, "splits"]
    assert not [name for name in os.listdir(toy_copy) if "partial" in name or "old" in name]


def test_a_part_of_another_shard_file_or_a_broken_one_is_made_again(toy_copy, monkeypatch):
    def stop(*_):
        raise DataError("stopped before the merge")

    monkeypatch.setattr(index_builder, "write_index", stop)
    with pytest.raises(DataError, match="stopped before the merge"):
        build(toy_copy)
    monkeypatch.undo()
    read = []
    real = shard_parts.index_shard
    monkeypatch.setattr(
        shard_parts, "index_shard", lambda path, f: (read.append(path.name), real(path, f))[1]
    )
    # Touched; and a part that lost its end.
    os.utime(train_shard(toy_copy, 0))
    part = default_index_dir(toy_copy) / "parts" / f"{train_shard(toy_copy, 2).name}.npz"
    part.write_bytes(part.read_bytes()[:-50])
    build(toy_copy)
    assert sorted(read) == [train_shard(toy_copy, 0).name, train_shard(toy_copy, 2).name]


def test_parts_of_other_features_are_made_again(tmp_path, monkeypatch):
    example = {"steps/x": float_list(1, 2), "steps/y": float_list(3, 4)}
    folder = write_set(tmp_path, {"x": FLOAT}, [[example]])
    monkeypatch.setattr(index_builder, "finish_index", lambda *_: None)
    build(folder)
    monkeypatch.undo()
    write_set(tmp_path, {"x": FLOAT, "y": FLOAT}, [[example]], keep_shards=True)
    assert build(folder).split("train").steps["y"][:].tolist() == [3, 4]


# A disk that is full.


def test_a_disk_that_fills_up_while_shards_are_indexed(toy_copy, monkeypatch):
    shutil.rmtree(default_index_dir(toy_copy))
    real = shard_parts.np.savez
    saved = []

    def no_space(file, **arrays):
        if len(saved) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(1)
        real(file, **arrays)

    monkeypatch.setattr(shard_parts.np, "savez", no_space)
    with pytest.raises(
        DataError,
        match=r"could not write the index .*No space left on device; about \d+\.\d MB more are "
        r"needed there; 2 of 6 finished shards are kept in .*parts: the same command goes on",
    ):
        build(toy_copy)
    monkeypatch.setattr(shard_parts.np, "savez", real)
    build(toy_copy)


def test_a_disk_that_fills_up_while_the_index_is_written(toy_copy, toy_index):
    """A real limit of the system, in a process of its own."""
    program = f"""
        import resource, signal
        from imagewam_jax.data.index import build as index_builder
        write = index_builder.write_index
        def limited(*args):
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, resource.RLIM_INFINITY))
            write(*args)
        index_builder.write_index = limited
        try:
            index_builder.build_index({str(toy_copy)!r}, progress=False)
        except index_builder.DataError as error:
            print(error)
    """
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert "File too large; about" in done.stdout
    assert "6 of 6 finished shards are kept" in done.stdout
    assert not [name for name in os.listdir(toy_copy) if "partial" in name]
    # The index that was there still is.
    assert open_index(toy_copy).checksum == toy_index.checksum


def test_a_failed_build_keeps_the_old_index_and_cleans_up(toy_copy, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(index_writer, "read_part", no_space)
    with pytest.raises(DataError, match=r"could not write the index .*No space left on device"):
        build(toy_copy)
    assert sorted(os.listdir(default_index_dir(toy_copy))) == [
        SUMS_FILE,
        META_FILE,
        "parts",
        "splits",
    ]
    open_index(toy_copy)


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
    edit_json(toy_copy / "dataset_info.json", lambda info: info.update(fileFormat="parquet"))
    with pytest.raises(DataError, match=r"fileFormat is 'parquet', expected .*tfds convert_form"):
        build(toy_copy)


def test_a_width_that_the_records_do_not_have(toy_copy):
    text = (toy_copy / "features.json").read_text()
    (toy_copy / "features.json").write_text(text.replace('"4"', '"3"'))
    with pytest.raises(DataError, match=r"00000-of-00003: record 0 .* numbers in 'steps/action'"):
        build(toy_copy)


def test_a_flipped_byte(toy_copy):
    flip_byte(train_shard(toy_copy, 1), 5000)
    with pytest.raises(DataError, match=r"train.tfrecord-00001-of-00003: .*their checksum"):
        build(toy_copy)


def test_a_truncated_shard(toy_copy):
    shard = train_shard(toy_copy, 2)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train.tfrecord-00002-of-00003: truncated at byte"):
        build(toy_copy)


def test_a_compressed_shard(toy_copy):
    shard = train_shard(toy_copy, 1)
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(DataError, match=r"train.tfrecord-00001-of-00003: gzip-compressed"):
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
    with pytest.raises(
        DataError,
        match=r"00001-of-00003: missing; 2 of 3 shards of split 'train' that dataset_info.json "
        r"lists are there; get them, or .*: imagewam data index --available-shards",
    ):
        build(toy_copy)
    with pytest.raises(DataError, match=r"00001-of-00003: missing, but it is indexed"):
        open_index(toy_copy)


def test_shards_that_are_there_can_be_indexed_and_the_others_are_named(toy_copy, toy_index):
    whole = toy_index.split("train")
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"
    train_shard(toy_copy, 1).write_text(text)
    with pytest.raises(
        DataError,
        match=r"00001-of-00003: a Git-LFS pointer, .*git lfs pull.*; 2 of 3 shards of split 'tra",
    ):
        build(toy_copy)
    index = build(toy_copy, available_shards=True)
    left_out = {"train": [train_shard(toy_copy, 1).name]}
    assert index.left_out == open_index(toy_copy).left_out == left_out
    assert index.checksum != toy_index.checksum
    split = index.split("train")
    assert [path.name[-14:] for path in split.shards] == ["00000-of-00003", "00002-of-00003"]
    kept = whole.episode_shard[whole.frame_episode] != 1
    np.testing.assert_array_equal(split.steps["action"][:], whole.steps["action"][:][kept])
    assert index.split("val").num_frames == toy_index.split("val").num_frames
    # A split of which nothing is there is left out too.
    for number in range(3):
        (toy_copy / f"toy_arm-val.tfrecord-{number:05d}-of-00003").unlink()
    index = build(toy_copy, available_shards=True)
    assert list(index.splits) == ["train"] and len(index.left_out["val"]) == 3
    for number in (0, 2):
        train_shard(toy_copy, number).unlink()
    with pytest.raises(DataError, match=r"0 of 3 shards of split 'train'.*0 of 3 shards of .*val"):
        build(toy_copy, available_shards=True)


@pytest.mark.parametrize("available", [False, True])
def test_shards_of_another_number_than_is_listed(toy_copy, available):
    def fewer(info):
        (train,) = (split for split in info["splits"] if split["name"] == "train")
        train["shardLengths"] = ["4", "5"]

    edit_json(toy_copy / "dataset_info.json", fewer)
    with pytest.raises(
        DataError,
        match=r"0 of 2 shards of split 'train' that dataset_info.json lists are there, and 3 others"
        r", such as toy_arm-train.tfrecord-00000-of-00003: .* do not belong together",
    ):
        build(toy_copy, available_shards=available)


def test_a_folder_that_may_not_be_written(toy, toy_index, monkeypatch, tmp_path):
    def read_only(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(index_builder.Path, "mkdir", read_only)
    with pytest.raises(
        DataError,
        match=r"could not write the index \S+/index: .*Read-only file system; give another fo"
        r"lder than the dataset's: data.index_directory of a config, or --output of ",
    ):
        build(toy.dataset_dir, tmp_path / "index")
    with pytest.raises(
        DataError, match=r"could not be written: .*Read-only file system; .*data.index_directory"
    ):
        standardize(toy_index, TOY, tmp_path / "index", progress=False)


# Faults between an index and its shards.


def test_no_index(toy_copy):
    shutil.rmtree(default_index_dir(toy_copy))
    with pytest.raises(DataError, match=r"no index of .* rebuild with: imagewam data index"):
        open_index(toy_copy)


def test_a_shard_that_was_truncated_later(toy_copy):
    shard = train_shard(toy_copy, 0)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"00000-of-00003: \d+ bytes, the index was built over"):
        open_index(toy_copy)


def test_a_shard_that_was_replaced_by_one_of_the_same_size(toy_copy, toy_index):
    split = toy_index.splits["train"]
    # The same as if the record's data, and with them their checksum, had changed.
    flip_byte(train_shard(toy_copy, 0), int(split.record_offset[0] + split.record_length[0]))
    with pytest.raises(
        DataError,
        match=r"00000-of-00003: .* the shard was replaced; rebuild with: imagewam data index",
    ):
        open_index(toy_copy)


def test_an_index_of_another_format_or_edited(toy_copy):
    meta = default_index_dir(toy_copy) / META_FILE
    edit_json(meta, lambda content: content.update(skipped={"a": "b"}))
    with pytest.raises(DataError, match=r"meta\.json differs from its own checksum"):
        open_index(toy_copy)
    edit_json(meta, lambda content: content.update(format=1))
    with pytest.raises(DataError, match="index format 1, expected 2; rebuild with"):
        open_index(toy_copy)
    meta.write_text("{")
    with pytest.raises(DataError, match=r"meta\.json: not readable.*rebuild with"):
        open_index(toy_copy)


def test_an_index_that_lost_a_column_or_part_of_one(toy_copy):
    file = default_index_dir(toy_copy) / "splits" / "train" / "steps" / "action.values.npy"
    values = np.load(file)
    np.save(file, values[:-1])
    with pytest.raises(DataError, match=r"action.values.npy: 137 rows, expected 138; rebuild"):
        open_index(toy_copy)
    file.unlink()
    with pytest.raises(DataError, match=r"action.values.npy: the index has lost a column"):
        open_index(toy_copy)


def test_an_unknown_split(toy_index):
    with pytest.raises(DataError, match=r"no split 'test', it has \['train', 'val'\]"):
        toy_index.split("test")


def test_a_damaged_part_of_an_unfinished_build_is_made_again(toy_copy):
    folder = read_tfds_folder(toy_copy)
    parts = default_index_dir(toy_copy) / PARTS_DIR
    shards = [path for split in folder.splits.values() for path in split.shards]
    for path in shards:
        make_part(path, folder.features, parts)
    damaged = part_file(parts, shards[0])
    with zipfile.ZipFile(damaged) as part:
        start = part.getinfo("steps/action:values.npy").header_offset
    flip_byte(damaged, start + 400)
    with pytest.raises(DataError, match=r"is damaged .* and was removed; the same command makes"):
        build(toy_copy)
    assert not damaged.exists()
    build(toy_copy)


def test_how_to_rebuild_an_index_that_lies_elsewhere(toy, tmp_path):
    elsewhere = tmp_path / "an index"
    with pytest.raises(DataError, match=r"index \S+/toy_arm/1.0.0 --output='\S+/an index'"):
        open_index(toy.dataset_dir, elsewhere)
