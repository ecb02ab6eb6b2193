"""Filters of steps, against examples worked out by hand."""

import numpy as np
import pytest

from imagewam_jax.data.transforms.filters import (
    bimanual_non_idle,
    idle_frames,
    kept_ranges,
    non_idle,
    not_first,
    success,
)
from imagewam_jax.errors import DataError
from tests.data.transforms.specs import row

NO_STATE = np.zeros((3, 0), np.float32)


def test_success_of_a_flag():
    action = np.zeros((3, 7), np.float32)
    for flag, expected in ((True, True), (False, False)):
        steps = {"success": np.array([flag] * 4)}  # one step was dropped by the transform
        assert success(steps, row(), action, NO_STATE).tolist() == [expected] * 3


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (b"/data/lab/success/2023-05-01/run_1/trajectory.h5", True),
        (b"/data/lab/failure/2023-05-01/run_1/trajectory.h5", False),
        (b"/data/successes/failure/run_1", False),
        (b"", False),
    ],
)
def test_success_of_a_path(path, expected):
    steps = {"file": np.array([path] * 3, object)}
    spec = row(options={"success_key": "file"})
    got = success(steps, spec, np.zeros((3, 7), np.float32), NO_STATE)
    assert got.dtype == bool and got.tolist() == [expected] * 3


def test_success_that_is_not_stored():
    with pytest.raises(DataError, match=r"no feature 'success', there are \[\]"):
        success({}, row(), np.zeros((3, 7), np.float32), NO_STATE)


def test_non_idle_steps_move():
    action = np.zeros((4, 7), np.float32)
    action[1, 2] = -2e-5  # moves
    action[2, 5] = 0.5e-5  # does not
    action[3, 6] = 1  # the gripper alone
    got = non_idle({}, row(), action, np.zeros((4, 0), np.float32))
    assert got.tolist() == [False, True, False, False]
    with pytest.raises(DataError, match="'non_idle' needs actions with displacements"):
        non_idle({}, row(relative=False), action[:3], NO_STATE)


def test_not_first():
    action = np.zeros((3, 7), np.float32)
    assert not_first({}, row(), action, NO_STATE).tolist() == [False, True, True]
    assert not_first({}, row(), action[:0], NO_STATE[:0]).tolist() == []


def _bimanual(**changes: float) -> tuple[np.ndarray, np.ndarray]:
    """One frame: a state of sevens, and an action that differs by `changes` in dims d<n>."""
    state = np.full((1, 14), 7.0)
    action = state.copy()
    for name, change in changes.items():
        action[0, int(name[1:])] += change
    return action, state


@pytest.mark.parametrize(
    ("changes", "idle"),
    [
        ({}, True),
        ({"d0": 0.9e-3}, True),
        ({"d0": 1.1e-3}, False),
        ({"d6": 1.1e-3}, False),  # a gripper
        ({"d13": 1.1e-3}, False),
        ({"d0": 0.8e-3, "d7": 0.8e-3}, False),  # arms together: 1.13e-3
        ({"d6": 0.8e-3, "d13": 0.8e-3}, False),  # grippers together: 1.13e-3
        # All together 1.27e-3, but arms and grippers are each within 1e-3.
        ({"d3": 0.9e-3, "d6": 0.9e-3}, True),
    ],
)
def test_idle_frames(changes, idle):
    assert idle_frames(*_bimanual(**changes)).tolist() == [idle]


@pytest.mark.parametrize(
    ("frames", "kept"),
    [
        # m moves, i is idle.
        ("mmmm", [(0, 4)]),
        ("", []),
        ("mmiiiimm", [(0, 8)]),  # four are a pause
        ("mmiiiiimm", [(0, 2), (7, 9)]),  # five are not
        ("iiiiimm", [(5, 7)]),
        ("iiiimm", [(0, 6)]),
        ("mmiiiii", [(0, 7)]),  # the run reaches the end
        ("mmiiiiiiiiii", [(0, 12)]),
        ("iiiiii", [(0, 6)]),  # it starts and ends the episode
        ("miiiiimiiiiim", [(0, 1), (6, 7), (12, 13)]),  # one frame is enough
        ("miiiiimiiiii", [(0, 1), (6, 12)]),
        ("miiiiimiii", [(0, 1), (6, 10)]),
    ],
)
def test_kept_ranges(frames, kept):
    assert kept_ranges(np.array([frame == "i" for frame in frames], bool)) == kept


def test_the_bimanual_filter():
    state = np.zeros((9, 14), np.float32)
    action = np.zeros((9, 14), np.float32)
    action[[0, 1, 7, 8], 3] = 0.5
    got = bimanual_non_idle({}, row(14, 14), action, state)
    assert got.tolist() == [True, True] + [False] * 5 + [True, True]
    with pytest.raises(DataError, match="needs 14 dimensions of action and state, found 7 and 14"):
        bimanual_non_idle({}, row(7, 14), action[:, :7], state)
