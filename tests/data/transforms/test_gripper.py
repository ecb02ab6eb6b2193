"""Gripper commands, against examples worked out by hand."""

import numpy as np
import pytest

from imagewam_jax.data.transforms.gripper import (
    OPERATIONS,
    binarized,
    clipped,
    clipped_inverted,
    inverted,
    relative_to_absolute,
)


def _f(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize(
    ("command", "state"),
    [
        # Close at the third step: until then it was open, since closing was not redundant.
        ((0, 0, 1, 0, 0, -1, 0), (1, 1, 0, 0, 0, 1, 1)),
        # Open at the third step: it was closed before.
        ((0, 0.05, -1, 0, 1), (0, 0, 1, 1, 0)),
        # Nothing is asked for, or too little: open throughout.
        ((0, 0.1, -0.1, 0.05), (1, 1, 1, 1)),
        # Just beyond the threshold of 0.1.
        ((0, 0.11, 0, -0.11), (1, 0, 0, 1)),
        # Asked again and again: the state holds.
        ((1, 1, 0, 1, -1, -1), (0, 0, 0, 0, 1, 1)),
        ((-1,), (1,)),
        ((), ()),
    ],
)
def test_relative_commands_become_states(command, state):
    got = relative_to_absolute(_f(*command))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, _f(*state))


@pytest.mark.parametrize(
    ("command", "state"),
    [
        # On its way from open to closed: what it arrives at.
        ((1, 0.97, 0.6, 0.3, 0.01, 0), (1, 1, 0, 0, 0, 0)),
        ((0, 0.04, 0.5, 0.96, 1), (0, 0, 1, 1, 1)),
        # A dip that returns is no closing.
        ((1, 0.7, 1), (1, 1, 1)),
        # The end of an episode on its way: the last settled state, never 0.4.
        ((1, 0, 0.4, 0.4), (1, 0, 0, 0)),
        ((0, 1, 0.4), (0, 1, 1)),
        # Nothing settles: above a half is open.
        ((0.4, 0.6, 0.5), (0, 1, 0)),
        # 0.95 and 0.05 themselves have not settled.
        ((1, 0.95, 0), (1, 0, 0)),
        ((0, 0.05, 1), (0, 1, 1)),
        ((), ()),
    ],
)
def test_continuous_openings_become_open_or_closed(command, state):
    got = binarized(_f(*command))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, _f(*state))


def _binarized_step_by_step(command: np.ndarray) -> list[float]:
    """The rule read aloud: walk back from the end, keep the last settled state seen."""
    settled = [float(c > 0.95) for c in command if c > 0.95 or c < 0.05]
    if not settled:
        return [float(c > 0.5) for c in command]
    state, states = settled[-1], []
    for c in reversed(command):
        if c > 0.95 or c < 0.05:
            state = float(c > 0.95)
        states.append(state)
    return states[::-1]


def _absolute_step_by_step(command: np.ndarray) -> list[float]:
    first = next((c for c in command if abs(c) > 0.1), 1.0)
    state, states = float(first > 0), []
    for c in command:
        if abs(c) > 0.1:
            state = float(c < 0)
        states.append(state)
    return states


@pytest.mark.parametrize("seed", range(20))
def test_random_commands_step_by_step(seed):
    rng = np.random.default_rng(seed)
    opening = rng.choice(_f(0, 0.02, 0.3, 0.5, 0.8, 0.99, 1), size=rng.integers(1, 12))
    assert binarized(opening).tolist() == _binarized_step_by_step(opening)
    move = rng.choice(_f(0, 0.05, 1, -1, -0.05, 0.5), size=rng.integers(1, 12))
    assert relative_to_absolute(move).tolist() == _absolute_step_by_step(move)


def test_simple_operations():
    np.testing.assert_array_equal(clipped(_f(-1, 0.25, 2)), _f(0, 0.25, 1))
    np.testing.assert_array_equal(inverted(_f(0, 0.25, 1)), _f(1, 0.75, 0))
    # LIBERO: -1 opens, +1 closes.
    np.testing.assert_array_equal(clipped_inverted(_f(-1, 1, 0.25)), _f(1, 0, 0.75))
    np.testing.assert_array_equal(OPERATIONS["open"](_f(0, 0.5)), _f(1, 1))
    np.testing.assert_array_equal(OPERATIONS["as_stored"](_f(0, 0.5)), _f(0, 0.5))
