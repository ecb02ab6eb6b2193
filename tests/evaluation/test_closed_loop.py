"""Success in a simulator: the policy variants, and what each of them is given."""

import html
import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from imagewam_jax import cli
from imagewam_jax.config.loading import load_config
from imagewam_jax.data.datasets import config_data
from imagewam_jax.errors import ConfigError
from imagewam_jax.evaluation import closed_loop
from imagewam_jax.evaluation.closed_loop import (
    BLANK,
    POLICY,
    RANDOM,
    REPLAY,
    SWAPPED,
    _check_fit,
    acting,
    demonstrations_by_instruction,
    evaluate_closed_loop,
    first_starts,
    mean_of_suites,
    success_by_suite,
    success_by_task,
    success_of,
)
from imagewam_jax.evaluation.films import film_strips, videos
from imagewam_jax.evaluation.rollout import PolicyInput, RolloutResult, wilson_interval
from imagewam_jax.evaluation.simulators import simulates
from imagewam_jax.policy.noise import sample_noise
from imagewam_jax.policy.policy import load_policy
from imagewam_jax.preprocess.inputs import Observations
from tests.evaluation.fake_simulator import NAME as FAKE
from tests.evaluation.fake_simulator import FakeSimulator
from tests.evaluation.opengl import require_metaworld
from tests.training.tiny import INSTRUCTIONS, ROOT, trained_run


@pytest.fixture(scope="module")
def policy():
    return load_policy(trained_run())


@pytest.fixture(scope="module")
def dataset(policy):
    return config_data(policy.config)["metaworld_faucet"]


# All that is asked of a dataset whose demonstrations are given: that its action is a displacement.
DATASET = SimpleNamespace(spec=SimpleNamespace(action=SimpleNamespace(relative=(True,))))


class StandIn:
    """A policy for the fake simulator, which moves by its instruction where it sees anything."""

    horizon, action_dim, state_dim, cameras = 4, 1, 1, ("primary", "secondary")

    def __init__(self):
        self.config = {
            "acting": {"execute_steps": 4},
            "evaluation": {"options": {}},
            "data": {"train_split": "train"},
        }

    def text_ids(self, instructions):
        return np.array(["forward" in instruction for instruction in instructions])

    def act(self, observations: Observations, noise):
        seen = observations.images.any(axis=(1, 2, 3, 4))
        move = np.where(observations.text_id, 1.0, -1.0) * seen
        return np.broadcast_to(move[:, None, None], noise.shape)


def test_every_policy_variant(monkeypatch, tmp_path):
    """Forward succeeds from any of these starts within its 12 steps, backward never does."""
    monkeypatch.setattr(closed_loop, "FIRST_SEED", 4)
    monkeypatch.setattr(closed_loop, "simulators_per_worker", lambda name: 2)
    demonstrations = {
        "go forward": [np.ones((12, 1), np.float32)],
        "go backward": [-np.ones((12, 1), np.float32)],
    }
    monkeypatch.setattr(
        closed_loop, "demonstrations_by_instruction", lambda dataset, split: demonstrations
    )
    success, results, spec = evaluate_closed_loop(
        StandIn(), DATASET, FAKE, episodes=6, workers=1, films=tmp_path
    )
    assert spec.action_names == ("move",)
    by_task = {
        name: [bool(s) for (task, _), s in zip(r.episodes, r.success, strict=True)]
        for name, r in results.items()
    }
    forward = [True, False] * 3  # tasks alternate: forward, backward
    assert by_task[POLICY] == by_task[REPLAY] == forward
    assert by_task[SWAPPED] == [not s for s in forward]
    assert not any(by_task[BLANK]) and not any(by_task[RANDOM])
    assert set(success) == set(results) == {POLICY, SWAPPED, BLANK, RANDOM, REPLAY}
    assert success[POLICY] == (3, 6, *wilson_interval(3, 6))
    # The same start states for all, those of the two tasks in pairs.
    assert {r.episodes for r in results.values()} == {results[POLICY].episodes}
    assert [seed for _, seed in results[POLICY].episodes] == [4, 4, 5, 5, 6, 6]
    for name in results:
        strips = range(4) if name in (POLICY, SWAPPED) else ()
        assert set(film_strips(tmp_path, name)) == set(strips)
    # The first success is the first episode forward, and the first failure the first one backward.
    assert set(videos(tmp_path, POLICY)) == set(videos(tmp_path, REPLAY)) == {0, 1}
    assert {path.name for path in videos(tmp_path, SWAPPED).values()} == {
        "00000-failure-forward.mp4",
        "00001-success-backward.mp4",
    }


def test_every_task_is_played_in_turn_from_stored_or_new_starts():
    spec = FakeSimulator.spec
    assert first_starts(spec, 3) == [("forward", 10_000), ("backward", 10_000), ("forward", 10_001)]
    stored = replace(spec, trials={"forward": 1, "backward": 3})
    starts = [("forward", 0), ("backward", 0), ("backward", 1), ("backward", 2)]
    assert first_starts(stored, 4) == starts and first_starts(stored, 3) == starts[:3]
    with pytest.raises(ConfigError, match="episodes is 5, and the simulator has 4 start states"):
        first_starts(stored, 5)


def test_suites_are_the_first_part_of_a_task_s_name():
    assert FakeSimulator.spec.suites == {"": ("forward", "backward")}
    instructions = dict.fromkeys(("near/push", "far/push", "near/pull"), "go")
    suites = replace(FakeSimulator.spec, instructions=instructions).suites
    assert suites == {"near": ("near/push", "near/pull"), "far": ("far/push",)}


def test_a_policy_that_does_not_fit_the_simulator(capsys):
    other = StandIn()
    other.cameras, other.state_dim, other.action_dim = ("primary",), 4, 7
    message = (
        "simulator 'fake' has 2 cameras, the policy 1; 1 dimensions of the state, the policy 4; "
        "1 dimensions of the action, the policy 7"
    )
    with pytest.raises(ConfigError, match=message):
        _check_fit(other, "fake", FakeSimulator.spec, 4)
    with pytest.raises(ConfigError, match="execute_steps is 5, expected 1 to 4, the horizon"):
        _check_fit(StandIn(), "fake", FakeSimulator.spec, 5)
    _check_fit(StandIn(), "fake", FakeSimulator.spec, 4)
    _check_fit(StandIn(), "fake", replace(FakeSimulator.spec, execute_steps=4), 4)
    assert capsys.readouterr().out == ""
    _check_fit(StandIn(), "fake", replace(FakeSimulator.spec, execute_steps=3), 4)
    assert "execute_steps is 4: the protocol of 'fake' executes 3" in capsys.readouterr().out


def test_a_registered_simulator_plays_its_own_dataset():
    quickstart = load_config(str(ROOT / "configs" / "quickstart.py"), [])
    simulator = quickstart.evaluation.simulator
    assert simulator and simulates(simulator, quickstart.data.dataset)
    assert not simulates(simulator, "toy_arm") and simulates(FAKE, "toy_arm")


def test_acting_gives_the_policy_what_the_simulator_shows(policy):
    rng = np.random.default_rng(0)
    batch = PolicyInput(
        images_bnhwc=rng.integers(0, 256, (2, 1, 64, 64, 3)).astype(np.uint8),
        state_bp=rng.uniform(size=(2, 4)).astype(np.float32),
        instructions=list(INSTRUCTIONS),
        episode_b=np.array([3, 8]),
        step_b=np.array([0, 12]),
    )
    noise = sample_noise([[5, 3, 0], [5, 8, 12]], (4, 4))
    observations = Observations(batch.images_bnhwc, batch.state_bp, policy.text_ids(INSTRUCTIONS))
    np.testing.assert_array_equal(acting(policy, seed=5)(batch), policy.act(observations, noise))


def test_demonstrations_are_whole_episodes_under_their_instruction(dataset):
    found = demonstrations_by_instruction(dataset, "train")
    index = dataset.index.split("train")
    assert set(found) == set(INSTRUCTIONS)
    assert sum(len(episodes) for episodes in found.values()) == index.num_episodes == 6
    actions = index.steps["action"][:]
    instruction = index.steps["language_instruction"][:1][0].decode()
    np.testing.assert_array_equal(found[instruction][0], actions[: index.episode_start[1]])
    assert sum(len(e) for episodes in found.values() for e in episodes) == index.num_frames


def test_success_with_its_interval():
    result = RolloutResult((("a", 0),) * 4, np.array([1, 0, 1, 1], bool), np.zeros(4, int))
    assert success_of(result) == (3, 4, *wilson_interval(3, 4))


def test_success_by_task_and_by_suite():
    tasks = ("near/push", "near/pull", "far/push", "far/lift")
    spec = replace(FakeSimulator.spec, instructions=dict.fromkeys(tasks, "go"))
    episodes = tuple((task, trial) for trial in range(4) for task in tasks[:3])
    success = np.array([1, 1, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0], bool)
    result = RolloutResult(episodes, success, np.zeros(12, int))
    by_task = success_by_task(result)
    assert {task: s[:2] for task, s in by_task.items()} == {
        "near/push": (4, 4),
        "near/pull": (1, 4),
        "far/push": (1, 4),
    }
    suites = success_by_suite(result, spec)
    assert {suite: s[:2] for suite, s in suites.items()} == {"near": (5, 8), "far": (1, 4)}
    error = np.sqrt(5 / 8 * 3 / 8 / 8 + 1 / 4 * 3 / 4 / 4) / 2
    np.testing.assert_allclose(mean_of_suites(suites), ((5 / 8 + 1 / 4) / 2, error))
    assert success_by_suite(result, FakeSimulator.spec) == {}  # its tasks have no suite


# The tiny policy's config names none.
SIMULATOR = ("--simulator=metaworld_faucet", "--option=image_side=64")


def evaluate(output, *more):
    arguments = ["evaluate", f"--checkpoint={trained_run()}", f"--output={output}", *SIMULATOR]
    return cli.main([*arguments, *more])


def test_no_opengl_is_one_error_that_says_what_to_install(monkeypatch, tmp_path, capsys):
    pytest.importorskip("mujoco")
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    assert evaluate(tmp_path, "--episodes=2", "--workers=1") == 1
    error = capsys.readouterr().err
    assert "imagewam evaluate: MuJoCo cannot render without a display here" in error
    assert "Traceback" not in error
    assert "apt-get install libegl1" in error and "MUJOCO_GL=nonsense" in error
    assert not (tmp_path / "report.html").exists()


def test_a_simulator_is_given_its_options(tmp_path, capsys):
    """One that it does not have is one error."""
    assert evaluate(tmp_path, "--option=colour='red'", "--episodes=2", "--workers=1") == 1
    error = capsys.readouterr().err
    message = "options of the simulator 'metaworld_faucet': got an unexpected keyword argument"
    assert f"{message} 'colour'" in error and "Traceback" not in error
    with pytest.raises(SystemExit):
        evaluate(tmp_path, "--option=colour")
    assert "argument --option: invalid option value: 'colour'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        evaluate(tmp_path, "--no-simulator")
    assert "--no-simulator: not allowed with argument --simulator" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluation_in_the_simulator(tmp_path):
    require_metaworld()
    assert evaluate(tmp_path, "--episodes=2", "--workers=1") == 0
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(results["closed_loop"]) == {POLICY, SWAPPED, BLANK, RANDOM, REPLAY}
    assert all(s["episodes"] == 2 for s in results["closed_loop"].values())
    for found in results["closed_loop"].values():
        assert {task: s["episodes"] for task, s in found["tasks"].items()} == {
            "faucet-open": 1,
            "faucet-close": 1,
        }
        assert "suites" not in found
    page = html.unescape((tmp_path / "report.html").read_text())
    for words in ("Success in the simulator", "gripper", "task 'open the faucet'"):
        assert words in page
    links = re.findall('<a href="(.*?)"', page)
    assert len(links) == 5 * 2 and all((tmp_path / link).stat().st_size > 500 for link in links)
    journal = (tmp_path / "episodes.jsonl").read_text()
    assert len(journal.splitlines()) == 1 + 5 * 2
    assert evaluate(tmp_path, "--episodes=2", "--workers=1", "--resume") == 0
    assert json.loads((tmp_path / "evaluation.json").read_text()) == results
    assert (tmp_path / "episodes.jsonl").read_text() == journal  # nothing was played again
    assert html.unescape((tmp_path / "report.html").read_text()) == page  # with the same pictures
