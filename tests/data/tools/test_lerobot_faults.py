"""What an import refuses, with the words that name it. No TensorFlow: nothing is written here."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagewam_jax.data.tools.lerobot.episodes import EpisodeReader
from imagewam_jax.data.tools.lerobot.folder import Feature, read_lerobot_folder
from imagewam_jax.data.tools.lerobot.importer import import_lerobot
from imagewam_jax.data.tools.lerobot.jobs import plan_jobs
from imagewam_jax.data.tools.lerobot.layout import plan_layout
from imagewam_jax.errors import DataError
from tests.data.tools import write_lerobot as lerobot

LENGTHS = (4, 3, 5)
CAMERA = "observation.images.image"
CAMERA_FILE = f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
ROWS_FILE = "data/chunk-000/episode_000001.parquet"


@pytest.fixture
def v21(tmp_path):
    lerobot.write_v21(tmp_path / "set", LENGTHS, encodings=(lerobot.LOSSLESS, lerobot.LOSSLESS))
    return tmp_path / "set"


@pytest.fixture
def v30(tmp_path):
    lossless = (lerobot.LOSSLESS, lerobot.LOSSLESS)
    lerobot.write_v30(tmp_path / "set", LENGTHS, ([], [1]), [], encodings=lossless)
    return tmp_path / "set"


def read_all(source, **options):
    folder = read_lerobot_folder(source)
    reader = EpisodeReader(folder, plan_layout(folder.features), **options)
    return [reader.read(episode) for episode in folder.episodes]


def refused(source, *words, **options):
    """The import is refused with these words, and leaves no set behind."""
    output = source.parent / "rlds"
    with pytest.raises(DataError) as caught:
        import_lerobot(source, output, name="new", progress=False, workers=1, **options)
    for word in words:
        assert word in str(caught.value)
    assert not (output / "new/1.0.0").exists()


def not_read(source, *words):
    """Reading the episodes, images and all, is refused with these words."""
    with pytest.raises(DataError) as caught:
        read_all(source)
    for word in words:
        assert word in str(caught.value)


def change_info(source, change):
    file = source / "meta/info.json"
    info = json.loads(file.read_text())
    change(info)
    file.write_text(json.dumps(info))


def change_rows(source, change):
    file = source / ROWS_FILE
    pq.write_table(change(pq.read_table(file)), file)


def change_listed_episodes(source, change):
    """Changes meta/episodes of v3.0: `change` gets the row of episode 1."""
    for file in (source / "meta/episodes").glob("*/*.parquet"):
        rows = pq.read_table(file).to_pylist()
        for row in rows:
            if row["episode_index"] == 1:
                change(row)
        pq.write_table(pa.Table.from_pylist(rows), file)


def replace(table, name, values):
    return table.set_column(table.column_names.index(name), name, values)


def test_sound_folders_are_read(v21, v30):
    # So that the refusals below are for what was changed.
    assert [len(episode["steps"]) for episode in read_all(v21)] == list(LENGTHS)
    assert [len(episode["steps"]) for episode in read_all(v30)] == list(LENGTHS)


def test_an_unknown_version(v21):
    change_info(v21, lambda info: info.update(codebase_version="v1.6"))
    refused(v21, "info.json", "'v1.6'", "v2.1", "v3.0")


@pytest.mark.parametrize(
    "missing", ["meta/info.json", "meta/episodes.jsonl", "meta/tasks.jsonl", ROWS_FILE, CAMERA_FILE]
)
def test_a_missing_file(v21, missing):
    (v21 / missing).unlink()
    refused(v21, missing, "missing")


def test_a_missing_file_of_v30(v30):
    (v30 / "meta/tasks.parquet").unlink()
    refused(v30, "tasks.parquet", "missing")


def test_files_of_episodes_that_are_not_asked_for_may_be_missing(v21, monkeypatch):
    def convert(task, jobs, workers, progress):
        raise DataError(f"converting {[e.index for job in jobs for e in job.episodes]}")

    monkeypatch.setattr("imagewam_jax.data.tools.lerobot.importer.convert_jobs", convert)
    (v21 / CAMERA_FILE).unlink()
    refused(v21, CAMERA_FILE, "missing", episodes="0:2")
    refused(v21, "converting [2]", episodes="2:")


def test_lines_end_at_line_feeds_alone(v21):
    text = "put\u2028the\u0085cup\x1cleft"
    lines = [{"task_index": i, "task": task} for i, task in enumerate((text, "b", "c"))]
    raw = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    (v21 / "meta/tasks.jsonl").write_bytes(raw.encode())
    assert read_lerobot_folder(v21).tasks == {0: text, 1: "b", 2: "c"}


@pytest.mark.parametrize("file", ["meta/tasks.jsonl", "meta/info.json", ROWS_FILE, CAMERA_FILE])
def test_a_file_that_git_lfs_did_not_fetch(v21, file):
    (v21 / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n")
    refused(v21, file, "Git-LFS pointer", "git lfs pull")


def test_instructions_that_are_stored_twice(v30):
    file = v30 / "meta/tasks.parquet"
    table = pq.read_table(file)
    texts = table["__index_level_0__"]
    pq.write_table(table.append_column("task", texts), file)
    assert read_lerobot_folder(v30).tasks == dict(enumerate(lerobot.TASKS))
    pq.write_table(table.append_column("task", pa.array(["x", "y", "z"])), file)
    refused(v30, "tasks.parquet", "one column of text", "'task'")


@pytest.mark.parametrize(
    ("key", "shape", "words"),
    [
        (CAMERA, 64, "the shape 64, expected a list of sizes"),
        (CAMERA, ["h", 64, 3], "the shape ['h', 64, 3], expected a list of sizes"),
        (CAMERA, [32, 64], "the shape (32, 64), expected three numbers"),
        (CAMERA, [32, 64, 5], "32 rows, 64 columns and 5 channels"),
        (CAMERA, [0, 64, 3], "0 rows, 64 columns and 3 channels"),
        ("action", 4, "the shape 4, expected a list of sizes"),
        ("action", "4", "the shape '4', expected a list of sizes"),
    ],
)
def test_shapes_that_mean_nothing(v21, key, shape, words):
    def change(info):
        info["features"][key] |= {"shape": shape, "names": None}

    change_info(v21, change)
    refused(v21, "info.json", repr(key), words)


def test_a_camera_that_would_be_lost(v21):
    def keep_numbers(info):
        for key in (CAMERA, "observation.images.wrist_image"):
            del info["features"][key]

    change_info(v21, keep_numbers)
    refused(v21, "videos of ['observation.images.image', 'observation.images.wrist_image']", "skip")
    shutil.rmtree(v21 / "videos")
    refused(v21, "no feature is a camera", "'action': 'float32 (4,)'")


def test_a_codec_that_cannot_be_decoded(v21):
    file = v21 / CAMERA_FILE
    file.write_bytes(file.read_bytes().replace(b"avc1", b"zzzz"))
    not_read(v21, CAMERA_FILE, "a codec that this FFmpeg cannot decode", "ffmpeg -i FILE")


def test_a_column_that_is_not_listed(v21):
    change_rows(v21, lambda t: t.append_column("torque", pa.array([1.0, 2.0, 3.0])))
    refused(v21, ROWS_FILE, "torque", "not in info.json")


def test_a_listed_column_that_is_not_there(v21):
    change_rows(v21, lambda t: t.drop_columns(["observation.effort"]))
    refused(v21, ROWS_FILE, "no column ['observation.effort']")


def test_another_shape(v21):
    change_rows(
        v21, lambda t: replace(t, "action", pa.array([[0.0] * 5] * 3, pa.list_(pa.float32())))
    )
    refused(v21, ROWS_FILE, "episode 1", "'action'", "(5,)", "expected (4,)")


def test_rows_of_several_lengths(v21):
    ragged = pa.array([[0.0] * 4, [0.0] * 4, [0.0] * 3], pa.list_(pa.float32()))
    change_rows(v21, lambda t: replace(t, "action", ragged))
    refused(v21, ROWS_FILE, "'action'", "rows of 3 to 4 numbers")


def test_values_that_the_declared_dtype_cannot_hold(v21):
    change_rows(v21, lambda t: replace(t, "task_index", pa.array([0.5, 1.0, 2.0])))
    refused(v21, ROWS_FILE, "'task_index'", "float64", "not int64")


def test_rows_without_a_value(v21):
    change_rows(v21, lambda t: replace(t, "next.reward", pa.array([0.5, None, 2.0], pa.float32())))
    refused(v21, ROWS_FILE, "'next.reward'", "1 of 3 rows have no value")


def test_an_unknown_task(v21):
    change_rows(v21, lambda t: replace(t, "task_index", pa.array([0, 7, 1])))
    refused(v21, ROWS_FILE, "episode 1", "task_index 7 at step 1", "[0, 1, 2]")


def test_rows_out_of_order(v21):
    change_rows(v21, lambda t: replace(t, "frame_index", pa.array([0, 2, 1])))
    refused(v21, ROWS_FILE, "frame_index")


def test_fewer_rows_than_listed(v21):
    change_rows(v21, lambda t: t.slice(0, 2))
    refused(v21, ROWS_FILE, "2 rows of episode 1, expected 3")


def test_an_empty_episode(v21):
    lines = [json.loads(line) for line in (v21 / "meta/episodes.jsonl").read_text().splitlines()]
    lines[1]["length"] = 0
    lerobot.write_lines(v21 / "meta/episodes.jsonl", lines)
    refused(v21, "episode 1 is empty")


def test_numbers_that_are_none_are_counted(v21):
    def spoil(table):
        action = np.zeros((3, 4), np.float32)
        action[1, 2], action[2] = np.nan, np.inf
        return replace(table, "action", pa.array(action.tolist(), pa.list_(pa.float32())))

    change_rows(v21, spoil)
    refused(v21, "5 numbers of 'action'", "first in episode 1", "allow_not_finite")
    steps = read_all(v21)[1]["steps"]
    assert np.isnan(steps[1]["action"][2])


def test_a_video_shorter_than_its_episode(v21):
    lerobot.write_video(v21 / CAMERA_FILE, [4, 5])
    not_read(v21, CAMERA_FILE, "shorter than episode 1", "no frame 2 of 3", "it has 2 frames")


def test_a_video_longer_than_its_episode(v21):
    lerobot.write_video(v21 / CAMERA_FILE, [4, 5, 6, 7])
    not_read(v21, CAMERA_FILE, "4 frames, expected 3")
    frames = read_all(v21, unused_frames=True)[1]["steps"]
    assert len(frames) == 3


def test_a_video_of_another_rate(v21):
    lerobot.write_video(v21 / CAMERA_FILE, [4, 5, 6], fps=15)
    not_read(v21, CAMERA_FILE, "frame 1 of episode 1 is expected at 0.1000 s")


def test_a_file_that_is_no_video(v21):
    (v21 / CAMERA_FILE).write_bytes(b"not a video at all")
    not_read(v21, CAMERA_FILE, "not a readable video")


def test_a_video_cut_off(v30):
    file = v30 / f"videos/{CAMERA}/chunk-000/file-000.mp4"
    file.write_bytes(file.read_bytes()[:-300])
    not_read(v30, "file-000.mp4")


def test_images_of_another_size(v21):
    change_info(v21, lambda i: i["features"][CAMERA].update(shape=[48, 64, 3]))
    not_read(v21, "videos/chunk-000", "32x64", "expected 48x64")


def test_a_start_that_is_off_by_a_part_of_a_frame(v30):
    def shift(row):
        row[f"videos/{CAMERA}/from_timestamp"] += 0.04
        row[f"videos/{CAMERA}/to_timestamp"] += 0.04

    change_listed_episodes(v30, shift)
    not_read(v30, "file-000.mp4", "frame 0 of episode 1 is expected at 0.4400 s", "0.4000 s")


def test_a_span_shorter_than_the_episode(v30):
    change_listed_episodes(v30, lambda row: row.update({f"videos/{CAMERA}/to_timestamp": 0.6}))
    refused(v30, "episode 1", CAMERA, "2.0 frames", "expected 3")


def test_a_total_that_is_not_so(v30):
    change_info(v30, lambda info: info.update(total_episodes=4))
    refused(v30, "total_episodes is 4, but 3 are listed")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"episodes": "0:9"}, "0 to 2"),
        ({"episodes": "2"}, "first:end"),
        ({"version": "1.0"}, "three numbers"),
        ({"jpeg_quality": 0}, "1 to 100"),
        ({"size": (0, 5)}, "height and width"),
        ({"skip": "note"}, "list"),
    ],
)
def test_options_that_make_no_sense(v21, options, word):
    refused(v21, word, **options)


def test_a_set_that_is_there_is_not_touched(v21):
    there = v21.parent / "rlds/new/1.0.0"
    there.mkdir(parents=True)
    with pytest.raises(DataError, match="exists already"):
        import_lerobot(v21, v21.parent / "rlds", name="new", progress=False)
    assert list(there.iterdir()) == []


def feature(key, dtype="float32", shape=(2,), **rest):
    return Feature(key, dtype, shape, **rest)


NUMBERS = {k: feature(k, "int64", (1,)) for k in ("episode_index", "task_index")}


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ([feature("depth", "video", (4, 4, 1), depth=True)], "depth map"),
        ([feature("events", "language", (1,))], "'language'"),
        ([feature("action"), feature("actions")], "'actions' would become 'action'"),
        (
            [feature("observation.a.b"), feature("observation.a_b")],
            "would become 'observation/a_b'",
        ),
        ([feature("reward", shape=(2,))], "one number per step"),
        ([feature("none", shape=(0,))], "sizes of 1 or more"),
        ([feature("observation.image", shape=(32, 64, 3))], "looks like a camera"),
        ([feature("front", shape=(3, 32, 64))], "looks like a camera"),
        ([feature("words", "string", (2,))], "strings of the shape (2,)"),
    ],
)
def test_features_that_have_no_place(features, words):
    with pytest.raises(DataError, match="skip") as caught:
        plan_layout(NUMBERS | {f.key: f for f in features})
    assert words in str(caught.value)
    plan_layout(NUMBERS | {f.key: f for f in features}, skip=[f.key for f in features])


def test_keys_of_features():
    image = (4, 4, 3)
    features = [
        feature("observation.images.wrist_image", "video", image),
        feature("observation.image", "image", image),
        feature("front.left", "image", image),
        feature("state"),
        feature("observation.state.arm"),
        feature("actions"),
        feature("next.success", "bool", (1,)),
    ]
    layout = plan_layout(NUMBERS | {f.key: f for f in features})
    assert list(layout.cameras.values()) == [
        "observation/wrist_image",
        "observation/image",
        "observation/front_left",
    ]
    assert layout.copied == {
        "task_index": "task_index",
        "state": "observation/state",
        "observation.state.arm": "observation/state_arm",
        "actions": "action",
        "next.success": "next_success",
    }


def test_jobs_hold_every_episode_once_in_order(v30, monkeypatch):
    monkeypatch.setattr("imagewam_jax.data.tools.lerobot.jobs._SHARD_BYTES", 7_400)
    folder = read_lerobot_folder(v30)
    jobs = plan_jobs(folder, plan_layout(folder.features), folder.episodes)
    assert [[e.index for e in job.episodes] for job in jobs] == [[0], [1], [2]]
    assert [job.number for job in jobs] == [0, 1, 2]
