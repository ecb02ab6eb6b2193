"""The RLDS dataset: what the builder writes, and the sample that ships with the project."""

import numpy as np
import pytest

from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from tests.data_builders.scripts import SAMPLE, load, run
from tests.evaluation.opengl import require_metaworld

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra 'tfds'")

STEP_KEYS = {
    "observation",
    "action",
    "language_instruction",
    "is_first",
    "is_last",
    "is_terminal",
    "reward",
    "discount",
}


def read(directory, split: str) -> list[dict]:
    """Every episode of a split: its metadata and its steps as stacked arrays."""
    episodes = []
    for episode in tfds.builder_from_directory(directory).as_dataset(split=split):
        steps = list(episode["steps"].as_numpy_iterator())
        assert set(steps[0]) == STEP_KEYS
        arrays = {
            key: np.stack([step[key] for step in steps]) for key in STEP_KEYS - {"observation"}
        }
        for key in ("image", "state"):
            arrays[key] = np.stack([step["observation"][key] for step in steps])
        metadata = {key: value.numpy() for key, value in episode["episode_metadata"].items()}
        episodes.append({**arrays, **metadata})
    return episodes


def make_raw(folder, pairs: int) -> dict[tuple[str, int], dict]:
    """Writes small collected episodes of random numbers; smooth images, as JPEG wants."""
    rng = np.random.default_rng(0)
    written = {}
    for index in range(pairs):
        for way in ("open", "close"):
            length = 3 + index
            ramp = np.linspace(0, 200, 16) + rng.uniform(0, 50, (length, 1, 1))
            episode = {
                "images": np.broadcast_to(ramp[..., None], (length, 16, 16, 3)).astype(np.uint8),
                "states": rng.normal(size=(length, 4)).astype(np.float32),
                "actions": rng.uniform(-1, 1, (length, 4)).astype(np.float32),
                "rewards": np.float32([0] * (length - 1) + [1]),
                "task": f"faucet-{way}",
                "instruction": f"{way} the faucet",
                "seed": np.int64(index),
                "noisy": way == "open",
            }
            np.savez(folder / f"faucet-{way}_{index:06d}.npz", **episode)
            written[f"faucet-{way}", index] = episode
    return written


def test_the_builder_writes_what_was_collected(tmp_path):
    written = make_raw(tmp_path, pairs=5)
    done = run("build", "--raw", tmp_path, "--output", tmp_path / "rlds", "--shards", 2)
    assert done.returncode == 0, done.stderr
    assert "train: 8 episodes in 2 shards\nval: 2 episodes in 2 shards" in done.stdout

    directory = tmp_path / "rlds" / "metaworld_faucet" / "1.0.0"
    train, val = read(directory, "train"), read(directory, "val")
    assert sorted(episode["seed"] for episode in train) == [0, 0, 1, 1, 2, 2, 4, 4]
    assert [episode["seed"] for episode in val] == [3, 3]
    for episode in train + val:
        source = written[episode["task"].decode(), int(episode["seed"])]
        last = len(source["actions"]) - 1
        for key, name in (("state", "states"), ("action", "actions"), ("reward", "rewards")):
            np.testing.assert_array_equal(episode[key], source[name])
        assert np.abs(episode["image"].astype(int) - source["images"]).max() <= 6
        assert set(episode["language_instruction"]) == {source["instruction"].encode()}
        assert episode["is_first"].nonzero()[0].tolist() == [0]
        assert episode["is_last"].nonzero()[0].tolist() == [last]
        assert episode["is_terminal"].nonzero()[0].tolist() == [last]
        assert (episode["discount"] == 0).nonzero()[0].tolist() == [last]
        assert episode["noisy"] == source["noisy"] and episode["success"]


def test_a_folder_without_enough_episodes_is_refused(tmp_path):
    make_raw(tmp_path, pairs=1)
    done = run("build", "--raw", tmp_path, "--output", tmp_path / "rlds")
    assert done.returncode == 1
    assert "expected collected episodes of at least 4 pairs, found 2 files" in done.stderr


def test_every_task_of_every_split_has_noisy_and_clean_episodes(tmp_path):
    plans = load("collect").plan_episodes(tmp_path, episodes_per_task=20, seed=0)
    held_out = [plan for plan in plans if plan.seed % 10 == 3]
    assert len({(plan.task, plan.noisy) for plan in held_out}) == 4


@pytest.fixture(scope="module")
def sample():
    return {split: read(SAMPLE, split) for split in ("train", "val")}


def test_the_sample_is_small_and_complete(sample):
    assert sum(path.stat().st_size for path in SAMPLE.iterdir()) < 3_000_000
    assert sorted(episode["seed"] for episode in sample["train"]) == [0, 0, 1, 1, 2, 2]
    assert [episode["seed"] for episode in sample["val"]] == [3, 3]
    for episode in sample["train"] + sample["val"]:
        way = episode["task"].decode().removeprefix("faucet-")
        assert set(episode["language_instruction"]) == {f"{way} the faucet".encode()}
        assert episode["image"].shape[1:] == (64, 64, 3) and episode["image"].dtype == np.uint8
        assert np.abs(episode["action"]).max() <= 1
        assert episode["reward"][-1] == 1 and episode["reward"][0] == 0


def test_the_sample_s_clean_episodes_play_out_as_recorded(sample):
    require_metaworld()
    clean = [e for e in sample["train"] + sample["val"] if not e["noisy"]]
    assert {e["task"] for e in clean} == {b"faucet-open", b"faucet-close"}
    with SimulatorPool("metaworld_faucet", num_simulators=len(clean), num_workers=2) as pool:
        starts = pool.reset({i: (e["task"].decode(), int(e["seed"])) for i, e in enumerate(clean)})
        halfway = pool.execute({i: e["action"][:30] for i, e in enumerate(clean)})
        ends = pool.execute({i: e["action"][30:] for i, e in enumerate(clean)})
    for i, episode in enumerate(clean):
        # A millimetre: processors round differently.
        np.testing.assert_allclose(starts[i].state, episode["state"][0], atol=1e-3)
        np.testing.assert_allclose(halfway[i].observation.state, episode["state"][30], atol=1e-3)
        assert _mean_difference(starts[i], episode["image"][0]) < 3
        assert _mean_difference(halfway[i].observation, episode["image"][30]) < 3
        assert _mean_difference(starts[i], episode["image"][30]) > 6  # The limits tell them apart.
        assert ends[i].success
        assert abs(ends[i].steps - (episode["reward"].argmax() + 1)) <= 1


def _mean_difference(observation, image: np.ndarray) -> float:
    return np.abs(observation.images_nhwc[0].astype(int) - image).mean()
