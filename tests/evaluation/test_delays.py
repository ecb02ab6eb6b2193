"""A policy whose chunks arrive late: what is executed, and where its chunks meet."""

import json

import numpy as np
import pytest

from imagewam_jax.errors import ConfigError
from imagewam_jax.evaluation import closed_loop
from imagewam_jax.evaluation.closed_loop import POLICY, evaluate_closed_loop
from imagewam_jax.evaluation.delays import LatePolicy, Seam, check_delays, total, variant_name
from imagewam_jax.evaluation.journal import Journal
from imagewam_jax.evaluation.report import delay_sections
from imagewam_jax.evaluation.rollout import PolicyInput, RolloutResult
from imagewam_jax.policy.policy import load_policy
from tests.evaluation.fake_simulator import NAME as FAKE
from tests.evaluation.test_closed_loop import DATASET, StandIn
from tests.policy.test_real_time import with_delays
from tests.serving.moving_camera import NAME as MOVING
from tests.training.tiny import trained_run

HORIZON, EXECUTE = 8, 4


class Counting(StandIn):
    """A policy whose k-th call gives the actions 100 k, 100 k + 1, ... in each row; where it goes
    on from a chunk it takes the known actions over."""

    horizon = HORIZON

    def __init__(self, max_delay=4):
        super().__init__()
        self.config["acting"] = {"euler_steps": 10, "execute_steps": EXECUTE}
        self.config["train"] = {"max_delay": max_delay}
        self.calls, self.previous = 0, []

    def act(self, observations, noise):
        self.calls += 1
        chunk = 100.0 * self.calls + np.arange(HORIZON)
        return np.broadcast_to(chunk[None, :, None], noise.shape).astype(np.float32)

    def act_real_time(self, observations, noise, previous, method):
        self.previous.append((method, previous))
        actions = self.act(observations, noise).copy()
        for row, delay in enumerate(previous.delay):
            actions[row, :delay] = previous.actions[row, :delay]
        return actions

    def normalized_actions(self, actions):
        return actions / 10


def plan(policy, episodes, steps):
    rows = len(episodes)
    images, state = np.zeros((rows, 2, 2, 2, 3), np.uint8), np.zeros((rows, 1), np.float32)
    batch = PolicyInput(images, state, ["go"] * rows, np.array(episodes), np.array(steps))
    return policy(batch)[..., 0]


def test_a_robot_goes_on_with_its_chunk_until_the_next_one_arrives():
    policy = LatePolicy(Counting(), 2, "naive", EXECUTE)
    assert plan(policy, [5], [0])[0].tolist() == [100, 101, 102, 103, 104, 105, 106, 107]
    # Two of what was left behind the four that were executed, and then the new ones.
    assert plan(policy, [5], [4])[0].tolist() == [104, 105, 202, 203, 204, 205, 206, 207]
    assert plan(policy, [5], [8])[0].tolist() == [204, 205, 302, 303, 304, 305, 306, 307]
    # In units of ten: the new ones are 96 from those that are executed, and 97 from the last.
    assert policy.seams[5] == pytest.approx((2, 2 * 9.6, 2 * 9.7))
    assert policy.seams[5].means() == pytest.approx({"difference": 9.6, "jump": 9.7})


def test_without_a_delay_every_action_is_of_the_newest_chunk():
    policy = LatePolicy(Counting(), 0, "naive", EXECUTE)
    plan(policy, [0], [0])
    assert plan(policy, [0], [4])[0].tolist() == [200 + i for i in range(8)]
    assert policy.seams[0] == pytest.approx((1, 0.0, 9.7))  # 103, then 200


def test_episodes_in_rows():
    """Each goes on from its own chunk; one that begins has none, and a row that stands in for
    another is that row."""
    late = LatePolicy(counting := Counting(), 2, "trained", EXECUTE)
    plan(late, [3, 7], [0, 0])
    found = plan(late, [7, 9, 7], [4, 0, 4])
    assert found[0].tolist() == found[2].tolist() == [104, 105, 202, 203, 204, 205, 206, 207]
    assert found[1].tolist() == [200 + i for i in range(8)]
    method, previous = counting.previous[-1]
    assert method == "trained" and previous.length.tolist() == [4, 0, 4]
    assert previous.delay.tolist() == [2, 0, 2] and previous.execute.tolist() == [4, 8, 4]
    assert previous.actions[0, :, 0].tolist() == [104, 105, 106, 107, 0, 0, 0, 0]
    assert late.seams[7] == pytest.approx((1, 0.0, 9.7)) and late.seams[9] == Seam()
    plan(late, [7], [0])  # played anew
    assert late.seams[7] == Seam()


def test_sums_of_seams():
    assert total([Seam(1, 0.5, 2.0), Seam(2, 0.25, 1.0)]) == (3, 0.75, 3.0)
    assert total([]) == Seam() and Seam().means() == {"difference": None, "jump": None}


@pytest.mark.parametrize(
    ("delay", "methods", "execute", "message"),
    [
        (5, ["naive"], 4, "delay is 5, expected 0 to 4: of 8 actions of a chunk 4 are executed"),
        (3, ["naive"], 6, "delay is 3, expected 0 to 2"),
        (-1, ["naive"], 4, "delay is -1, expected 0 to 4"),
        (3, ["naive", "trained"], 4, "delay is 3, the method 'trained' goes on after up to 2"),
        (3, ["other"], 4, r"real_time has 'other', the policy offers \['naive', 'trained', 'gui"),
    ],
)
def test_delays_that_cannot_be(delay, methods, execute, message):
    with pytest.raises(ConfigError, match=message):
        check_delays(Counting(max_delay=2), delay, tuple(methods), execute)


def test_methods_without_a_delay():
    with pytest.raises(ConfigError, match=r"real_time is \['naive'\]: expected a delay"):
        closed_loop._late(Counting(), 4, None, ["naive"])
    names = list(closed_loop._late(Counting(), 4, 2, None))
    assert names == ["policy, 2 steps late, naive", "policy, 2 steps late, trained"]
    assert variant_name(1, "guided") == "policy, 1 step late, guided"


class Slow(StandIn):
    """It moves by half a step, so that episodes take several decisions."""

    def __init__(self):
        super().__init__()
        self.config |= {"acting": {"euler_steps": 2, "execute_steps": 2}, "train": {}}

    def act(self, observations, noise):
        return super().act(observations, noise) / 2

    def normalized_actions(self, actions):
        return actions


def test_late_variants_beside_the_policy_and_after_a_kill(monkeypatch, tmp_path):
    """A resumed evaluation tells the seams of episodes that were played before."""
    monkeypatch.setattr(closed_loop, "FIRST_SEED", 6)
    monkeypatch.setattr(closed_loop, "demonstrations_by_instruction", lambda *_: {})

    def play(episodes):
        with Journal(tmp_path / "episodes.jsonl", {}, resume=True) as journal:
            return evaluate_closed_loop(
                Slow(),
                DATASET,
                FAKE,
                episodes=episodes,
                workers=1,
                journal=journal,
                delay=1,
                real_time=("naive",),
                execute_steps=3,
            )[:2]

    play(2)
    success, results = play(4)
    name = "policy, 1 step late, naive"
    assert list(results)[:2] == [POLICY, name]
    np.testing.assert_array_equal(results[name].success, results[POLICY].success)
    lines = [json.loads(line) for line in (tmp_path / "episodes.jsonl").read_text().splitlines()]
    decisions = sum(line["decisions"] for line in lines if line.get("way") == name)
    # 12 steps, the limit, are four decisions, the first of which has nothing to go on from.
    planned = -(-results[name].steps // 3) - 1
    assert decisions == planned.sum() > 4
    assert results[name].seam == {"difference": 0.0, "jump": 0.0}
    assert results[POLICY].seam is None and success[name] == success[POLICY]


def test_the_section_of_the_report():
    episodes, steps = (("a", 0), ("a", 1)), np.array([10, 30])
    once, never = np.array([True, False]), np.array([False, False])
    means = {"difference": 0.25, "jump": 0.5}
    results = {
        POLICY: RolloutResult(episodes, once, steps),
        "late": RolloutResult(episodes, never, steps, means),
        "other": RolloutResult(episodes, once, steps),
    }
    success = {name: closed_loop.success_of(result) for name, result in results.items()}
    (section,) = delay_sections(success, results)
    assert section.table[1:] == [
        (POLICY, "1 / 2", "10", "", ""),
        ("late", "0 / 2", "", "0.250", "0.500"),
    ]
    assert delay_sections(success, {POLICY: results[POLICY]}) == []


@pytest.mark.slow(minutes=1)
@pytest.mark.parametrize("delay", [0, 1, 2])
def test_every_method_in_closed_loop(delay, monkeypatch):
    """The chunks of a trained policy begin with what is executed, exactly; those of a guided one
    are nearer to it than those of one that knows nothing of it."""
    monkeypatch.setattr(closed_loop, "demonstrations_by_instruction", lambda *_: {})
    monkeypatch.setattr(closed_loop, "simulators_per_worker", lambda name: 2)
    methods = ("naive", "guided", "identity", "trained")
    _, results, _ = evaluate_closed_loop(
        with_delays(load_policy(trained_run()), 2),
        DATASET,
        MOVING,
        episodes=4,
        workers=1,
        execute_steps=2,
        delay=delay,
        real_time=methods,
    )
    naive, guided, identity, trained = (results[variant_name(delay, m)].seam for m in methods)
    if delay == 0:
        assert naive["difference"] == trained["difference"] == 0
        assert naive["jump"] == pytest.approx(trained["jump"], rel=1e-3)
    else:
        assert trained["difference"] < 1e-6
        assert identity["difference"] < 0.5 * naive["difference"]
        assert guided["difference"] < naive["difference"]
