"""Shifts between actions and states, and whether an action is a displacement or a target."""

import numpy as np
import pytest

from imagewam_jax.data.statistics.motion import Episode, action_kinds, find_shift

HZ = 10.0


def walks(late: int = 0, delay: float = 0.0, *, absolute: bool = False) -> list[Episode]:
    """Episodes of a hand with three joints that does what it is told, smoothly.

    late: steps by which actions are recorded too late; below 0, too early.
    delay: the share of its motion that the robot still has before it at each step.
    """
    episodes = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        moves = rng.normal(size=(60, 3)).cumsum(0)
        moves = np.sin(moves) / 10  # goes to and fro
        state, states, motion = rng.normal(size=3), [], np.zeros(3)
        for move in moves:
            states.append(state)
            motion = delay * motion + (1 - delay) * move
            state = state + motion
        states = np.array([*states, state])
        actions = states[1:] if absolute else moves
        episodes.append(Episode(np.roll(actions, late, 0)[9:-9], states[:-1][9:-9]))
    return episodes


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("late", [-3, -1, 0, 1, 3])
def test_a_shift_is_found_and_measured(late, absolute):
    shift = find_shift(walks(late, absolute=absolute), [not absolute] * 3, [None] * 3, HZ)
    if late == 0:
        assert shift is None
    else:
        assert shift.lag == -late and shift.dims == (0, 1, 2)
        assert shift.best > 0.99 > shift.own


def test_a_robot_s_own_delay_is_no_shift_but_a_long_one_is():
    slow = walks(delay=0.7)
    assert find_shift(slow, [True] * 3, [0, 1, 2], control_hz=80.0) is None
    late = [Episode(e.actions[:-4], e.states[4:]) for e in slow]  # and recorded late
    assert find_shift(late, [True] * 3, [0, 1, 2], HZ).lag < 0
    early = find_shift(walks(late=-4, delay=0.3), [True] * 3, [0, 1, 2], HZ)
    assert early.lag == 4 and early.best < 0.98
    # A gripper may be slower than the rest, of which the state says nothing.
    alone = [Episode(e.actions, e.states[:, :1]) for e in walks(late=-4, delay=0.3)]
    assert find_shift(alone, [True] * 3, [0, None, None], HZ) is None


def test_what_has_nothing_to_do_with_each_other_has_no_shift():
    rng = np.random.default_rng(0)
    noise = [Episode(rng.normal(size=(40, 6)), rng.normal(size=(40, 14))) for _ in range(5)]
    assert find_shift(noise, [True] * 6, [None] * 6, HZ) is None
    assert find_shift(noise[:1], [True] * 6, [None] * 6, HZ) is None  # too few steps
    still = [Episode(np.ones((200, 2)), np.ones((200, 2)))]
    assert find_shift(still, [True, False], [0, 1], HZ) is None


def test_displacements_and_targets_are_told_apart():
    relative, absolute = walks(), walks(absolute=True)
    mixed = [
        Episode(np.stack([r.actions[:, 0], a.actions[:, 1], np.sign(r.actions[:, 2])], 1), r.states)
        for r, a in zip(relative, absolute, strict=True)
    ]
    kinds = action_kinds(mixed)
    assert [kind for kind, _ in kinds] == ["relative", "absolute", "relative"]
    assert "state 0" in kinds[0][1] and "state 1 of the next step to within 0%" in kinds[1][1]
    rng = np.random.default_rng(0)
    noise = [Episode(rng.normal(size=(200, 2)), rng.normal(size=(200, 3)))]
    assert action_kinds(noise) == [("", "")] * 2
    assert action_kinds([Episode(np.ones((50, 2)), np.ones((50, 0)))]) == [("", "")] * 2
