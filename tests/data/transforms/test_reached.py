"""Actions relabelled from states, against examples worked out by hand."""

import numpy as np
import pytest

from imagewam_jax.data.registry import dataset_spec
from imagewam_jax.data.transforms.columns import reached
from imagewam_jax.errors import DataError
from tests.data.transforms.specs import row


def test_bridge():
    """Three steps make two: motion from the states, the gripper from the actions."""
    state = np.float32(
        [
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
            [0.5, 0.25, 0.0, 0.125, 0.0, -0.5, 0.75],
            [0.5, 0.5, -1.0, 0.125, 0.25, 0.0, 0.5],
        ]
    )
    action = np.float32([[9] * 6 + [1.0], [9] * 6 + [0.5], [9] * 6 + [0.0]])
    made, kept = reached(
        {"action": action, "observation/state": state}, dataset_spec("bridge_dataset")
    )
    # The gripper's 0.5 leads to the closed third step, which is itself dropped.
    assert made.tolist() == [
        [0.5, 0.25, 0, 0.125, 0, -0.5, 1],
        [0, 0.25, -1, 0, 0.25, 0.5, 0],
    ]
    np.testing.assert_array_equal(kept, state[:2])
    assert made.dtype == kept.dtype == np.float32


def test_bridge_of_open_x():
    made, kept = reached(
        {
            "action/world_vector": np.full((2, 3), 9, np.float32),
            "action/rotation_delta": np.full((2, 3), 9, np.float32),
            "action/open_gripper": np.array([False, True]),
            "observation/state": np.float32([[0] * 7, [1, 2, 3, 0.5, 0, 0, 1]]),
        },
        dataset_spec("bridge"),
    )
    assert made.tolist() == [[1, 2, 3, 0.5, 0, 0, 0]] and kept.tolist() == [[0] * 7]


def test_an_angle_that_passes_pi_is_a_small_turn():
    state = np.zeros((2, 6), np.float32)
    state[:, 5] = 3.125, -3.125
    made, _ = reached({"a": np.zeros((2, 7), np.float32), "s": state}, row(7, 6))
    assert made[0, 5] == pytest.approx(2 * np.pi - 6.25, abs=1e-6)


def test_an_episode_of_one_step_has_no_action():
    steps = {"a": np.zeros((1, 7), np.float32), "s": np.zeros((1, 6), np.float32)}
    made, kept = reached(steps, row(7, 6))
    assert made.shape == (0, 7) and kept.shape == (0, 6)


def test_it_needs_poses():
    steps = {"a": np.zeros((2, 7), np.float32), "s": np.zeros((2, 3), np.float32)}
    with pytest.raises(DataError, match="begin with a pose, found 7 and 3 dimensions"):
        reached(steps, row(7, 3))
