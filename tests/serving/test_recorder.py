"""What a server records, as TFDS and this package read it, and what it does when it cannot."""

import io
import json
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from imagewam_jax.config.defaults import defaults
from imagewam_jax.data.datasets import config_data
from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import default_index_dir
from imagewam_jax.data.tools import rollouts
from imagewam_jax.data.tools.rollouts import read_episode, recorded_episodes
from imagewam_jax.errors import ConfigError
from imagewam_jax.serving import recorder as module
from imagewam_jax.serving.metrics import Metrics
from imagewam_jax.serving.recorder import open_recorder
from tests.commands import run
from tests.hosts import ROOT
from tests.serving.robots import FAST, Robot, observation, served, tiny_actor

OBSERVE, STEP, RESET = "imagewam/observe", "imagewam/step", "imagewam/reset"
SESSION = "imagewam/session"


@pytest.fixture
def record(tmp_path):
    """The folder of a recording, and a server's settings to make it."""
    folder = tmp_path / "robots"
    return folder, FAST._replace(buckets=(1,), record=folder)


def episodes(folder):
    return [read_episode(path) for path in recorded_episodes(folder).values()]


def flat(seed: int, **changes):
    """An observation whose image has one color, which JPEG keeps."""
    return observation(seed, **changes) | {
        "observation/image": np.full((64, 64, 3), 20 * seed, np.uint8)
    }


def test_steps_have_the_action_that_the_chunk_before_has_for_them(record):
    folder, settings = record
    with served(*tiny_actor(), settings) as server:
        with Robot(server.url) as robot:
            assert robot.ask(flat(7, **{OBSERVE: True})) == {}  # before any chunk
            first = robot.ask(flat(0, **{STEP: 10}))["actions"]
            assert robot.ask(flat(1, **{OBSERVE: True})) == {}  # the step after that
            assert robot.ask(flat(2, **{OBSERVE: True, STEP: 12})) == {}
            assert robot.ask(flat(3, **{OBSERVE: True, STEP: 90})) == {}  # no action is left
            second = robot.ask(flat(4, **{STEP: 13}))["actions"]
            third = robot.ask(flat(5, **{RESET: True}))["actions"]
        with Robot(server.url) as robot:
            for name in "ab":
                robot.ask(flat(6, **{SESSION: name}))
    whole, after_reset, *named = episodes(folder)
    assert whole.steps["step"].tolist() == [10, 11, 12, 90, 13]
    assert whole.steps["chunk_row"].tolist() == [0, 1, 2, 3, 0]
    assert whole.steps["chunk_id"].tolist() == [0, 0, 0, 0, 1]
    assert whole.steps["seed"].tolist() == [[0, -1, -1, -1]] * 4 + [[4, -1, -1, -1]]
    np.testing.assert_array_equal(whole.actions, [*first, second[0]])
    np.testing.assert_array_equal(whole.steps["chunk"], [first] * 4 + [second])
    expected = [flat(seed)["observation/state"] for seed in range(5)]
    np.testing.assert_array_equal(whole.states, np.float32(expected))
    assert whole.instructions == [flat(seed)["prompt"] for seed in range(5)]
    (files,) = whole.images.values()
    for seed, file in enumerate(files):
        assert np.abs(np.asarray(Image.open(io.BytesIO(file))) - 20.0 * seed).max() <= 1
    assert (whole.episode["chunks"], whole.episode["part"], whole.episode["success"]) == (2, 0, -1)
    np.testing.assert_array_equal(after_reset.actions, third[:1])
    assert sorted(each.episode["session"][-2:] for each in named) == [" a", " b"]
    assert [len(each.actions) for each in named] == [1, 1]


def test_the_dataset_as_tfds_and_as_this_package_read_it(record):
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra 'tfds'")
    folder, settings = record
    actor, contract = tiny_actor()
    chunks = []
    for _ in range(2):  # the second server goes on with the recording of the first
        with served(actor, contract, settings) as server, Robot(server.url) as robot:
            chunks.append([robot.ask(flat(seed))["actions"] for seed in range(3)])
    # In another process: TensorFlow does not come together with all that tests import.
    run([sys.executable, "-m", "imagewam_jax.data.tools.rollouts", folder], ROOT)
    version = folder / rollouts.VERSION
    builder = tfds.builder_from_directory(version)
    for episode, answered in zip(
        tfds.as_numpy(builder.as_dataset(split="train")), chunks, strict=True
    ):
        told = episode["episode_metadata"]
        assert told["policy"].decode() == contract.metadata["policy_hash"]
        assert told["policy_step"] == contract.metadata["checkpoint_step"]
        assert (told["chunks"], told["success"], told["control_hz"]) == (3, -1, 80.0)
        for step, chunk in zip(episode["steps"], answered, strict=True):
            np.testing.assert_array_equal(step["chunk"], chunk)
            np.testing.assert_array_equal(step["action"], chunk[0])
            assert step["is_terminal"] == step["reward"] == 0
    build_index(version, default_index_dir(version), progress=False)
    section = defaults().data.to_dict() | {
        "directory": str(version),
        "dataset": "robots",
        "rows": json.loads((version / "row.json").read_text()),
    }
    opened = config_data(defaults().to_dict() | {"data": section})["robots"]
    actions = opened.standardized.splits["train"].actions
    np.testing.assert_array_equal(actions, [chunk[0] for each in chunks for chunk in each])


def test_an_episode_that_is_too_long_has_parts(record, monkeypatch):
    folder, settings = record
    monkeypatch.setattr(module, "LONGEST_BYTES", 1500)  # a flat image has some 800
    with served(*tiny_actor(), settings) as server, Robot(server.url) as robot:
        for seed in range(4):
            robot.ask(flat(seed))
    found = episodes(folder)
    assert [each.episode["part"] for each in found] == list(range(len(found))) and len(found) > 1
    assert np.concatenate([each.steps["step"] for each in found]).tolist() == [0, 1, 2, 3]
    assert len({each.episode["began"] for each in found}) == 1


def test_robots_are_answered_while_the_disk_is_behind(record, monkeypatch):
    folder, settings = record
    begun, goes_on = threading.Event(), threading.Event()
    encode = rollouts.jpeg_file

    def stuck(image):
        begun.set()
        assert goes_on.wait(60)
        return encode(image)

    monkeypatch.setattr(rollouts, "jpeg_file", stuck)
    monkeypatch.setattr(module, "WAITING_STEPS", 2)
    with served(*tiny_actor(), settings) as server:
        with Robot(server.url) as robot:
            assert robot.ask(flat(0)).keys() >= {"actions"}
            assert begun.wait(60)  # one is being written, two wait, and two are left out
            for seed in range(1, 5):
                assert robot.ask(flat(seed)).keys() >= {"actions"}
            assert "imagewam_recorder_dropped_total 2.0" in server.get("/metrics")
        goes_on.set()
    (found,) = episodes(folder)
    assert found.steps["step"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("small_disk", ["64k"], indirect=True)
def test_a_full_disk_ends_the_record_and_not_the_server(small_disk, caplog):
    folder = small_disk / "robots"
    settings = FAST._replace(buckets=(1,), record=folder)
    with served(*tiny_actor(), settings) as server, Robot(server.url) as robot:
        for seed in range(200):  # one step each, of noise, which JPEG does not make small
            assert robot.ask(observation(seed, **{RESET: True})).keys() >= {"actions"}
            if "nothing more is recorded" in caplog.text:
                break
        for seed in range(3):
            assert robot.ask(observation(seed)).keys() >= {"actions"}
        dropped = server.get("/metrics")
    assert caplog.text.count("nothing more is recorded") == 1
    assert "No space left" in caplog.text and "free some space there" in caplog.text
    assert "imagewam_recorder_dropped_total 0.0" not in dropped
    assert all(len(each.actions) == 1 for each in episodes(folder))  # none is there in part


def test_another_policy_s_recording_is_left_alone(record):
    folder, _ = record
    _, contract = tiny_actor()
    dropped = Metrics().recorder_dropped
    with open_recorder(folder, contract, dropped):
        pass
    other = contract._replace(metadata=contract.metadata | {"checkpoint_step": 99})
    with (
        pytest.raises(ConfigError, match=f"{folder}: holds another policy's recording"),
        open_recorder(folder, other, dropped),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="--record: no row is known of the policy's dataset"),
        open_recorder(folder, contract._replace(row=None), dropped),
    ):
        pass
