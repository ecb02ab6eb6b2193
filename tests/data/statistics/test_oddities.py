"""Warnings about numbers: outliers, dimensions that do not vary, actions that are shifted."""

import dataclasses
import itertools

import numpy as np
import pytest

from imagewam_jax import cli
from imagewam_jax.data.loading.splits import selected_steps
from imagewam_jax.data.statistics.exact import exact_statistics
from imagewam_jax.data.statistics.oddities import find_oddities
from tests.data.toy import toy_data
from tests.training.tiny import ROOT, copy_sample


def oddities_of(toy, change, normalization="min/max", split="train"):
    """What is said of the toy set once `change` has edited copies of its actions and states."""
    (dataset,) = toy_data(toy.dataset_dir).datasets
    part = dataset.standardized.splits["train"]
    actions, states = np.array(part.actions), np.array(part.states)
    change(actions, states)
    changed = dataclasses.replace(part, actions=actions, states=states)
    standardized = dataclasses.replace(dataset.standardized, splits={"train": changed})
    dataset = dataclasses.replace(dataset, standardized=standardized)
    rows = selected_steps(dataset.select(split))
    statistics = {
        "action": exact_statistics(actions[rows]),
        "state": exact_statistics(states[rows]),
    }
    return [str(oddity) for oddity in find_oddities(dataset, split, statistics, normalization)]


def test_random_numbers_are_not_odd(toy):
    for mode in ("min/max", "z-score", "q01/q99", "-1.0/1.0"):
        assert oddities_of(toy, lambda actions, states: None, mode) == []


def test_an_outlier_is_found_where_it_is(toy):
    starts = toy_data(toy.dataset_dir).datasets[0].index.split("train").episode_start
    (long,) = np.flatnonzero(np.diff(starts) == 40)

    def spoil(actions, states):
        actions[starts[long] + 7, 2] = 1e4
        states[starts[long] + 33, 4] = -500.0

    for mode in ("min/max", "z-score"):
        action, state = oddities_of(toy, spoil, mode)
        assert action.startswith(
            "warning: toy_arm: action 'speed' has outliers: 98 % of it is in ["
        )
        assert f"1 of 138 steps lie far out, farthest 1e+04 in episode {long}, step 7" in action
        assert f"data.normalization={mode!r}" in action and "data.normalization='q01/q99'" in action
        assert "state 'e' has outliers" in state and f"-500 in episode {long}, step 33" in state
    assert oddities_of(toy, spoil, "q01/q99") == []
    if long:
        assert oddities_of(toy, spoil, split=f"train[:{long}]") == []  # other episodes


def test_the_share_of_the_rest_is_said(toy):
    def spoil(actions, states):
        actions[:, 0] = np.linspace(-1, 1, len(actions))
        actions[3, 0] = 1001.0

    (found,) = oddities_of(toy, spoil)
    # 1.96 of a range of 1002.
    assert "takes 0.20% of [-1, 1]" in found


def test_what_does_not_vary_is_a_note_and_its_noise_a_warning(toy):
    def spoil(actions, states):
        rng = np.random.default_rng(0)
        actions[:, 0] = 0.1
        actions[:, 1] = 0.3 + 1e-5 * rng.normal(size=len(actions))
        states[:, 0] = 700 + 1e-2 * rng.normal(size=len(states))

    constant, tiny, noise = oddities_of(toy, spoil)
    assert constant == (
        "note: toy_arm: action 'x' is 0.1 at every step: acting returns about that number"
    )
    assert tiny.startswith("note: toy_arm: action 'y' hardly varies: 0.3 with")
    assert noise.startswith("warning: toy_arm: state 'a' hardly varies: 700 with")
    # z-score makes any noise as large as a motion.
    assert oddities_of(toy, spoil, "z-score")[1].startswith("warning: toy_arm: action 'y' hardly")


def test_a_slip_in_a_constant_is_a_warning_and_a_rare_flag_is_not(toy):
    def slip(actions, states):
        actions[:, 3] = 1.0
        actions[40, 3] = -1.0

    def flag(actions, states):
        actions[:, 3] = 0.0
        actions[40:42, 3] = 1.0

    (found,) = oddities_of(toy, slip)
    assert "action 'grip' is 1 but for 1 of 138 steps, such as -1 in episode" in found
    assert oddities_of(toy, flag) == []


@pytest.mark.parametrize(("late", "said"), [(2, "2 steps late"), (-3, "3 steps early"), (0, "")])
def test_actions_beside_the_wrong_observation(toy, late, said):
    def record(actions, states):
        starts = toy_data(toy.dataset_dir).datasets[0].index.split("train").episode_start
        for first, last in itertools.pairwise(starts):
            moves = np.random.default_rng(first).normal(size=(last - first, 2)).astype(np.float32)
            states[first:last, :2] = np.cumsum(moves, 0) - moves
            actions[first:last, :2] = np.roll(moves, late, 0)

    found = oddities_of(toy, record)
    if said:
        (warning,) = found
        assert warning.startswith(f"warning: toy_arm: actions 'x', 'y' come {said}")
        assert ("state[:-2]" in warning) == (late == 2)
    else:
        assert found == []


def test_no_false_alarm_of_the_shipped_sample(tmp_path, capsys):
    """The sample's robot follows its actions 40 ms late, and never opens its gripper."""
    folder = copy_sample(tmp_path)
    config = [f"--config={ROOT / 'configs' / 'quickstart.py'}", f"--config.data.directory={folder}"]
    assert cli.main(["data", "stats", *config]) == 0
    out = capsys.readouterr().out
    assert "warning" not in out
    assert [line for line in out.splitlines() if line.startswith("note")] == [
        "note: metaworld_faucet: action 'gripper' is 1 at every step: acting returns about that "
        "number"
    ]
