"""Collecting demonstrations: planned, recorded and written episodes."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from imagewam_jax.evaluation.simulators.base import Observation
from tests.data_builders.scripts import load, run
from tests.evaluation.opengl import require_metaworld

collect = load("collect")


def plan(noisy: bool, task: str = "faucet-open") -> "collect.EpisodePlan":
    return collect.EpisodePlan(task, seed=3, noisy=noisy, path=Path("unused.npz"))


class Slider:
    """Succeeds once the executed first actions add up to the goal; the expert's action is 1, 1."""

    def __init__(self, goal: float):
        self.spec = SimpleNamespace(max_steps=dict.fromkeys(collect.TASKS, 30))
        self.goal = goal
        self.executed = []

    def reset(self, task: str, seed: int) -> Observation:
        return self.observe()

    def expert_action(self) -> np.ndarray:
        return np.ones(2, np.float32)

    def step(self, action: np.ndarray, *, look: bool) -> bool:
        self.executed.append(action)
        return sum(a[0] for a in self.executed) >= self.goal

    def observe(self) -> Observation:
        seen = len(self.executed)
        return Observation(np.full((1, 2, 2, 3), seen, np.uint8), np.float32([seen]), "slide")


def test_pairs_share_their_start_and_differ_in_noise():
    plans = collect.plan_episodes(Path("raw"), episodes_per_task=20, seed=100)
    assert len({p.path for p in plans}) == 40
    for index, (opening, closing) in enumerate(zip(plans[::2], plans[1::2], strict=True)):
        assert (opening.task, closing.task) == ("faucet-open", "faucet-close")
        assert opening.seed == closing.seed == 100 + index
        assert opening.noisy != closing.noisy
    assert sum(p.noisy for p in plans if p.task == "faucet-open") == 10


def test_recorded_steps_hold_what_was_seen_before_the_action():
    episode = collect.record_episode(Slider(goal=6), plan(noisy=False))
    length = 6 + collect.STEPS_AFTER_SUCCESS
    assert {name: array.shape for name, array in episode.items()} == {
        "images": (length, 2, 2, 3),
        "states": (length, 1),
        "actions": (length, 2),
        "rewards": (length,),
    }
    np.testing.assert_array_equal(episode["images"][:, 0, 0, 0], np.arange(length))
    np.testing.assert_array_equal(episode["states"][:, 0], np.arange(length))
    np.testing.assert_array_equal(episode["rewards"], [0] * 5 + [1] * (length - 5))


def test_noise_is_executed_and_never_a_label():
    simulator = Slider(goal=20)
    episode = collect.record_episode(simulator, plan(noisy=True))
    np.testing.assert_array_equal(episode["actions"], 1)
    noise = np.stack(simulator.executed) - 1
    assert 0.2 < noise.std() < 0.4
    again = Slider(goal=20)
    collect.record_episode(again, plan(noisy=True))
    np.testing.assert_array_equal(again.executed, simulator.executed)
    other = Slider(goal=20)
    collect.record_episode(other, plan(noisy=True, task="faucet-close"))
    assert not np.array_equal(other.executed[0], simulator.executed[0])


def test_an_episode_without_success_is_rejected():
    assert collect.record_episode(Slider(goal=31), plan(noisy=False)) is None
    # Success at the very last step counts.
    assert collect.record_episode(Slider(goal=30), plan(noisy=False)) is not None


def test_files_depend_on_the_seed_alone_and_are_kept(tmp_path):
    require_metaworld()
    two, one = tmp_path / "two", tmp_path / "one"
    done = run("collect", "--output", two, "--episodes-per-task", 2, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 episodes" in done.stdout
    files = sorted(path.name for path in two.iterdir())
    assert files == ["collection.json"] + [
        f"faucet-{way}_{index:06d}.npz" for way in ("close", "open") for index in (0, 1)
    ]

    run("collect", "--output", one, "--episodes-per-task", 1, "--workers", 1)
    kept = (one / "faucet-open_000000.npz").stat().st_mtime_ns
    run("collect", "--output", one, "--episodes-per-task", 2, "--workers", 1)
    assert (one / "faucet-open_000000.npz").stat().st_mtime_ns == kept
    for name in files:
        assert (one / name).read_bytes() == (two / name).read_bytes()

    refused = run("collect", "--output", one, "--episodes-per-task", 2, "--image-side", 32)
    assert refused.returncode == 1
    assert "asked to continue with" in refused.stderr
