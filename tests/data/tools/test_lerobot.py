"""Whole imports, compared with what was written, through TFDS's own reader."""

import ast
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from imagewam_jax.config.defaults import defaults
from imagewam_jax.data.datasets import open_data
from imagewam_jax.data.index.tfds_folder import read_tfds_folder
from tests.data.tools import write_lerobot as lerobot

pytest.importorskip("tensorflow_datasets")
SCRIPT = Path(__file__).with_name("import_lerobot_sets.py")
ROOT = Path(__file__).parents[3]
LENGTHS = (5, 1, 9, 7)
CAMERAS = {"image": 0, "wrist_image": 1}


def run(folder, jobs, code=None):
    (folder / "jobs.pickle").write_bytes(pickle.dumps(jobs))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, *(["-c", code] if code else [str(SCRIPT)]), str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The results of five imports, in one process beside this one, and the episodes written."""
    folder = tmp_path_factory.mktemp("lerobot")
    written = {
        "v21": lerobot.write_v21(folder / "My LeRobot-set", LENGTHS),
        "v30": lerobot.write_v30(
            folder / "v30", LENGTHS, video_cuts=([3], [1, 2]), data_cut=[2], drift=0.004
        ),
        "images": lerobot.write_v30_with_images(folder / "with_images", LENGTHS),
    }
    output = folder / "rlds"
    jobs = [
        (folder / "My LeRobot-set", output, {"workers": 1}),
        (folder / "v30", output, {"workers": 2, "shard_bytes": 15_000, "name": "shared_files"}),
        (folder / "with_images", output, {"workers": 1}),
        (
            folder / "v30",
            output,
            {"workers": 1, "name": "part", "version": "2.0.1", "episodes": "1:3", "size": (24, 80)},
        ),
    ]
    done = run(folder, jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    results = pickle.loads((folder / "results.pickle").read_bytes())
    return folder, written, dict(zip(("v21", "v30", "images", "part"), results, strict=True))


def check_episode(episode, metadata, steps, source, cameras=CAMERAS):
    assert metadata["episode_index"] == episode.index
    assert metadata["source"].decode() == source
    assert len(steps) == episode.length
    last = episode.length - 1
    for t, step in enumerate(steps):
        seen = {name: lerobot.number_of(step["observation"][name]) for name in cameras}
        assert seen == {name: episode.frame_numbers(c)[t] for name, c in cameras.items()}
        exact = {
            "action": episode.action[t],
            "annotation_matrix": episode.matrix[t],
            "next_reward": episode.reward[t : t + 1],
            "next_done": episode.done[t : t + 1],
            "timestamp": np.array([t / lerobot.FPS], np.float32),
            "task_index": episode.task[t : t + 1],
        }
        for key, value in exact.items():
            np.testing.assert_array_equal(step[key], value, err_msg=key, strict=True)
        observation = step["observation"]
        np.testing.assert_array_equal(observation["state"], episode.state[t], strict=True)
        np.testing.assert_array_equal(observation["effort"], episode.effort[t], strict=True)
        assert set(observation) == {*cameras, "state", "effort"}
        assert set(step) == {
            *exact,
            "observation",
            "language_instruction",
            "note",
            "is_first",
            "is_last",
            "is_terminal",
            "reward",
            "discount",
        }
        assert step["language_instruction"].decode() == lerobot.TASKS[episode.task[t]]
        assert step["note"].decode() == f"note {episode.index}.{t}"
        assert step["is_first"] == (t == 0)
        assert step["is_last"] == (t == last)
        assert step["is_terminal"] == (t == last and episode.index % 2 == 1)
        assert step["reward"] == episode.reward[t]
        assert step["discount"] == 1


def test_v21_agrees_with_what_was_written(imported):
    _, written, results = imported
    result = results["v21"]
    assert result["path"].parts[-2:] == ("my_lerobot_set", "1.0.0")
    assert list(result["splits"]) == ["train"]
    assert len(result["splits"]["train"]) == len(LENGTHS)
    for episode, (metadata, steps) in zip(written["v21"], result["splits"]["train"], strict=True):
        file = f"data/chunk-{episode.index // 2:03d}/episode_{episode.index:06d}.parquet"
        check_episode(episode, metadata, steps, f"My LeRobot-set/{file}")


def test_v30_episodes_in_shared_files_agree(imported):
    _, written, results = imported
    episodes = results["v30"]["splits"]["train"]
    for episode, (metadata, steps) in zip(written["v30"], episodes, strict=True):
        file = f"data/chunk-000/file-{episode.index // 2:03d}.parquet"
        check_episode(episode, metadata, steps, f"v30/{file}")


def test_images_in_parquet_agree_and_splits_are_kept(imported):
    _, written, results = imported
    splits = results["images"]["splits"]
    assert {name: len(part) for name, part in splits.items()} == {"train": 2, "val": 2}
    cameras = {"image": 0, "wrist": 1, "array": 1, "chw": 0}
    for episode, (metadata, steps) in zip(
        written["images"], splits["train"] + splits["val"], strict=True
    ):
        source = "with_images/data/chunk-000/file-000.parquet"
        check_episode(episode, metadata, steps, source, cameras)


def test_a_range_of_episodes_and_another_size(imported):
    _, written, results = imported
    result = results["part"]
    assert result["path"].parts[-2:] == ("part", "2.0.1")
    episodes = result["splits"]["train"]
    assert [metadata["episode_index"] for metadata, _ in episodes] == [1, 2]
    for episode, (_, steps) in zip(written["v30"][1:3], episodes, strict=True):
        images = [step["observation"]["wrist_image"] for step in steps]
        assert {image.shape for image in images} == {(24, 80, 3)}
        assert [lerobot.number_of(image) for image in images] == episode.frame_numbers(1)


def test_the_folder_is_complete_and_alone(imported):
    folder, _, results = imported
    for result in results.values():
        assert [p.name for p in result["path"].parent.iterdir()] == [result["path"].name]
        described = read_tfds_folder(result["path"])
        assert described.name == result["path"].parent.name
        assert described.version == result["path"].name
    shards = read_tfds_folder(results["v30"]["path"]).splits["train"]
    assert len(shards.shards) > 1
    assert sum(shards.shard_records) == len(LENGTHS)
    assert sorted(p.name for p in (folder / "rlds").iterdir()) == [
        "my_lerobot_set",
        "part",
        "shared_files",
        "with_images",
    ]


def told(result):
    """The name of the dataset and the rows that are printed at the end."""
    name, rows = result["said"][-1].split("\n#")[0].split("\n", 1)
    return ast.literal_eval(name.split(" = ")[1]), ast.literal_eval(rows.split(" = ", 1)[1])


def test_samples_of_it_with_that_row(imported, tmp_path):
    """The imported dataset is indexed and standardized: batches show the frames of the video."""
    _, written, results = imported
    name, rows = told(results["v30"])
    sizes = {"horizon": 3, "action_dim": 4, "state_dim": 3}
    section = defaults().data.to_dict() | {"directory": str(results["v30"]["path"]), "rows": rows}
    section |= {"dataset": name, "cameras": ("primary", "wrist")}
    (dataset,) = open_data(section | {"index_directory": str(tmp_path)}, **sizes).datasets
    reader, start_frames = dataset.reader("train"), dataset.start_frames("train")
    assert len(start_frames) == sum(LENGTHS)
    batch = reader.read(start_frames)
    numbers = dataset.index.splits["train"].episodes["episode_metadata/episode_index"][:]
    for row in range(len(start_frames)):
        episode = written["v30"][int(numbers[batch["episode"][row]])]
        step, last = int(batch["step"][row]), episode.length - 1
        for k, camera in enumerate(("image", "wrist_image")):
            numbers_of = episode.frame_numbers(CAMERAS[camera])
            expected = [numbers_of[step], numbers_of[min(step + 3, last)]]
            height, width = batch["image_size"][row, k]
            images = batch["images"][row, k, :, :height, :width]
            assert [lerobot.number_of(image) for image in images] == expected
        np.testing.assert_array_equal(batch["proprio"][row], episode.state[step])
        chunk = episode.action[np.minimum(step + np.arange(3), last)]
        np.testing.assert_array_equal(batch["actions"][row], chunk)


def test_the_row_to_read_it_with_is_told(imported):
    _, _, results = imported
    dataset, rows = told(results["v30"])
    assert dataset == "shared_files"
    assert rows[dataset] == {
        "cameras": {"primary": "observation/image", "wrist": "observation/wrist_image"},
        "action": {
            "name": "as_recorded",
            "dims": ["x", "y", "z", "gripper"],
            "relative": [False] * 4,
        },
        "state": {
            "name": "as_recorded",
            "dims": ["observation/state_0", "observation/state_1", "observation/state_2"],
        },
        "action_keys": ["action"],
        "state_keys": ["observation/state"],
        "control_hz": 10.0,
        "language": ["language_instruction"],
    }


DIES_AT_EPISODE_2 = """
import os, pickle, sys
from pathlib import Path
from imagewam_jax.data.tools.lerobot import import_lerobot
from imagewam_jax.data.tools.lerobot import jobs

class Dies(jobs.ShardWriter):
    def write(self, episode, name):
        if name == "2":
            os._exit(9)
        super().write(episode, name)

jobs.ShardWriter = Dies
(source, output, options), = pickle.loads((Path(sys.argv[1]) / "jobs.pickle").read_bytes())
jobs._SHARD_BYTES = options.pop("shard_bytes")
import_lerobot(source, output, progress=False, **options)
"""


def test_a_killed_import_leaves_nothing_and_goes_on_where_it_was(imported, tmp_path):
    folder, written, _ = imported
    options = {"workers": 1, "shard_bytes": 15_000, "name": "killed"}
    jobs = [(folder / "v30", tmp_path / "rlds", options)]
    assert run(tmp_path, jobs, DIES_AT_EPISODE_2).returncode == 9
    assert not (tmp_path / "rlds/killed/1.0.0").exists()
    finished = tmp_path / "rlds/killed/.1.0.0.partial/job-00000-0.tfrecord"
    inode, time_written = finished.stat().st_ino, finished.stat().st_mtime_ns
    time.sleep(0.01)

    done = run(tmp_path, jobs)
    assert done.returncode == 0, done.stderr[-3000:]
    (result,) = pickle.loads((tmp_path / "results.pickle").read_bytes())
    assert result["said"][0].startswith("going on")
    shard = read_tfds_folder(result["path"]).splits["train"].shards[0]
    assert (shard.stat().st_ino, shard.stat().st_mtime_ns) == (inode, time_written)
    for episode, (metadata, steps) in zip(written["v30"], result["splits"]["train"], strict=True):
        check_episode(episode, metadata, steps, metadata["source"].decode())
    assert [p.name for p in result["path"].parent.iterdir()] == ["1.0.0"]
