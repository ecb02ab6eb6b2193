"""Rollouts, baselines and intervals, with simulators that have no physics."""

import numpy as np
import pytest

from imagewam_jax.evaluation.journal import Ended
from imagewam_jax.evaluation.rollout import (
    PolicyInput,
    random_policy,
    replay_policy,
    rollout,
    wilson_interval,
    with_blank_images,
    with_instructions,
)
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from tests.evaluation.fake_simulator import NAME, FakeSimulator

EPISODES = [("forward", 7), ("backward", 0), ("forward", 0), ("forward", 9), ("backward", 5)]


@pytest.fixture(scope="module")
def pool():
    with SimulatorPool(NAME, num_simulators=3, num_workers=2) as pool:
        yield pool


def obey(batch: PolicyInput) -> np.ndarray:
    """Does what it is told, four actions at a time."""
    sign = [1.0 if word == "go forward" else -1.0 for word in batch.instructions]
    return np.broadcast_to(np.array(sign)[:, None, None], (len(sign), 4, 1))


def batch(**fields) -> PolicyInput:
    default = PolicyInput(
        images_bnhwc=np.full((2, 1, 2, 2, 3), 9, np.uint8),
        state_bp=np.zeros((2, 1), np.float32),
        instructions=["go forward", "go backward"],
        episode_b=np.array([0, 1]),
        step_b=np.array([0, 0]),
    )
    return default._replace(**fields)


def test_every_episode_is_played_to_its_end(pool):
    result = rollout(pool, obey, EPISODES, execute_steps=2)
    assert result.success.tolist() == [True, False, True, True, False]
    assert result.steps.tolist() == [3, 12, 10, 1, 12]
    assert result.episodes == tuple(EPISODES)


def test_the_policy_always_sees_a_full_batch_of_playing_episodes():
    seen = []

    def watch(batch):
        seen.append(batch)
        return obey(batch)

    with SimulatorPool(NAME, num_simulators=3, num_workers=2) as pool:  # which holds no task yet
        rollout(pool, watch, EPISODES, execute_steps=2)
    assert {b.images_bnhwc.shape for b in seen} == {(3, 2, 2, 2, 3)}
    assert {b.state_bp.shape for b in seen} == {(3, 1)}
    for b in seen:
        starts = np.array([EPISODES[e][1] for e in b.episode_b])
        signs = np.array([1 if EPISODES[e][0] == "forward" else -1 for e in b.episode_b])
        np.testing.assert_array_equal(b.state_bp[:, 0], starts + signs * b.step_b)
        assert b.instructions == [
            FakeSimulator.spec.instructions[EPISODES[e][0]] for e in b.episode_b
        ]
    # The last episode alone is left: its row is repeated.
    assert seen[-1].episode_b.tolist() == [4, 4, 4]


def test_the_result_does_not_depend_on_how_episodes_are_batched(pool):
    policy = random_policy(FakeSimulator.spec, horizon=4, seed=1)
    episodes = [("forward", seed) for seed in (9, 8, 9, 7, 9, 9, 8)]
    few = rollout(pool, policy, episodes, execute_steps=3)
    with SimulatorPool(NAME, num_simulators=8, num_workers=1) as wide:
        many = rollout(wide, policy, episodes, execute_steps=3)
    np.testing.assert_array_equal(few.success, many.success)
    np.testing.assert_array_equal(few.steps, many.steps)
    assert 0 < few.success.sum() < len(episodes)  # The comparison says something.


def test_an_idle_simulator_prefers_the_task_that_it_holds():
    """Loading a task may take seconds: two simulators and two tasks need it twice."""
    episodes = [("backward", 0), *[("forward", 0)] * 4, *[("backward", 0)] * 3]  # three chunks each
    with SimulatorPool(NAME, num_simulators=2, num_workers=1) as two:
        success = rollout(two, obey, episodes, execute_steps=4).success
        assert success.tolist() == [task == "forward" for task, _ in episodes]
        loaded = [two.reset({i: ("loaded", 0)})[i].instruction for i in range(2)]
        assert loaded == ["backward loaded", "forward loaded"]
        # Whoever has none of its own takes one that nobody holds.
        rollout(two, obey, [("forward", 9), ("forward", 8), ("backward", 5)], execute_steps=4)
        assert sorted(two.tasks.values()) == ["backward", "forward"]


class Notes:
    """Writes down what a rollout tells its observers."""

    def __init__(self, every_step=False):
        self.every_step, self.told = every_step, {}

    def began(self, episode, start, observation):
        self.told[episode] = [start, observation.state[0]]

    def acted(self, episode, actions, seen):
        self.told[episode] += [actions[:, 0].tolist(), *(o.state[0] for o in seen)]

    def ended(self, episode, ended):
        self.told[episode].append(ended)


def test_observers_are_told_what_was_seen_and_done(pool):
    notes = Notes()
    rollout(pool, obey, EPISODES, execute_steps=4, observers=[notes], ended={3: Ended(True, 1)})
    assert sorted(notes.told) == [0, 1, 2, 4]  # the other one was played before
    assert notes.told[0] == [EPISODES[0], 7, [1, 1, 1], 10, (True, 3)]  # it ends within a chunk
    assert notes.told[2] == [EPISODES[2], 0, [1] * 4, 4, [1] * 4, 8, [1, 1], 10, (True, 10)]
    back = [-1] * 4
    assert notes.told[4] == [EPISODES[4], 5, back, 1, back, -3, back, -7, (False, 12)]


def test_an_observer_may_see_every_step(pool):
    few, all_steps = Notes(), Notes(every_step=True)
    rollout(pool, obey, EPISODES, execute_steps=4, observers=[few, all_steps])
    assert all_steps.told[0] == few.told[0] == [EPISODES[0], 7, [1, 1, 1], 8, 9, 10, (True, 3)]
    back = [-1] * 4
    assert all_steps.told[1][:8] == [EPISODES[1], 0, back, -1, -2, -3, -4, back]
    assert all_steps.told[1][-5:] == [-9, -10, -11, -12, (False, 12)]


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.zeros((3, 1, 1)), r"actions \[3, at least 2, 1\], found \[3, 1, 1\]"),
        (np.zeros((2, 4, 1)), r"found \[2, 4, 1\]"),
        (np.zeros((3, 4, 7)), r"found \[3, 4, 7\]"),
        (np.zeros((3, 4)), r"found \[3, 4\]"),
        (np.full((3, 4, 1), np.nan), "not finite"),
    ],
)
def test_wrong_actions_are_refused(pool, actions, message):
    with pytest.raises(ValueError, match=message):
        rollout(pool, lambda _: actions, EPISODES, execute_steps=2)


def test_random_actions_fill_the_bounds_and_repeat():
    spec = FakeSimulator.spec
    actions = random_policy(spec, horizon=500)(batch())
    assert actions.shape == (2, 500, 1)
    assert -1 <= actions.min() < -0.95 and 0.95 < actions.max() <= 1
    np.testing.assert_array_equal(actions, random_policy(spec, horizon=500)(batch()))
    later = random_policy(spec, horizon=500)(batch(step_b=np.array([4, 0])))
    assert not np.array_equal(later[0], actions[0])
    np.testing.assert_array_equal(later[1], actions[1])


def test_replay_follows_one_demonstration_and_then_rests():
    demonstrations = {
        "go forward": [np.arange(1.0, 6.0)[:, None] + 10 * k for k in range(50)],
        "go backward": [-np.ones((3, 1))],
    }
    policy = replay_policy(demonstrations, horizon=4, relative=(True,))
    start, later = policy(batch()), policy(batch(step_b=np.array([3, 9])))
    chosen = start[0, 0, 0] - 1
    np.testing.assert_array_equal(start[0, :, 0], chosen + np.array([1, 2, 3, 4]))
    np.testing.assert_array_equal(later[0, :, 0], [chosen + 4, chosen + 5, 0, 0])
    np.testing.assert_array_equal(start[1, :, 0], [-1, -1, -1, 0])
    np.testing.assert_array_equal(later[1, :, 0], [0, 0, 0, 0])
    others = {policy(batch(episode_b=np.array([e, 0])))[0, 0, 0] for e in range(20)}
    assert len(others) > 5


def test_a_replay_that_is_over_holds_the_gripper():
    """Displacements end, targets stay: 0 would close a gripper that the demonstration left open."""
    actions = np.array([[0.5, 0.0], [0.25, 0.75]])
    told = {"go forward": [actions], "go backward": [actions]}
    policy = replay_policy(told, horizon=3, relative=(True, False))
    start, later = policy(batch()), policy(batch(step_b=np.array([1, 70])))
    np.testing.assert_array_equal(start[0], [[0.5, 0], [0.25, 0.75], [0, 0.75]])
    np.testing.assert_array_equal(later[0], [[0.25, 0.75], [0, 0.75], [0, 0.75]])
    np.testing.assert_array_equal(later[1], [[0, 0.75]] * 3)


def test_a_policy_told_otherwise_does_otherwise():
    swapped = with_instructions(obey, {"go forward": "go backward", "go backward": "go forward"})
    np.testing.assert_array_equal(swapped(batch()), -obey(batch()))


def test_a_blinded_policy_sees_black():
    seen = []

    def act(batch):
        seen.append(batch.images_bnhwc)
        return np.zeros((2, 1, 1), np.float32)

    act(batch())
    with_blank_images(act)(batch())
    assert seen[0].max() == 9
    assert seen[1].max() == 0 and seen[1].shape == (2, 1, 2, 2, 3)


@pytest.mark.parametrize(
    ("successes", "trials", "interval"),
    [
        # Without failures or without successes the interval has a closed form.
        (0, 50, (0.0, 1.96**2 / (50 + 1.96**2))),
        (50, 50, (50 / (50 + 1.96**2), 1.0)),
        # Roots of (p - 0.8)^2 = z^2 p (1 - p) / 10.
        (8, 10, tuple(np.sort(np.roots([1 + 0.38416, -1.6 - 0.38416, 0.64])))),
    ],
)
def test_wilson_interval(successes, trials, interval):
    np.testing.assert_allclose(wilson_interval(successes, trials), interval, atol=1e-12)


def test_wilson_interval_refuses_what_is_no_rate():
    with pytest.raises(ValueError, match="3 successes in 2 trials"):
        wilson_interval(3, 2)
    with pytest.raises(ValueError, match="0 successes in 0 trials"):
        wilson_interval(0, 0)
