"""Rotations, against hand-worked turns and SciPy."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from imagewam_jax.data.transforms.rotations import (
    euler_from_matrix,
    euler_from_quaternion,
    in_frame,
    matrix_from_euler,
    matrix_from_quaternion,
    wrapped,
)
from imagewam_jax.errors import DataError

HALF = np.sqrt(0.5)


@pytest.mark.parametrize(
    ("xyzw", "euler"),
    [
        ((0, 0, 0, 1), (0, 0, 0)),
        ((HALF, 0, 0, HALF), (np.pi / 2, 0, 0)),
        ((0, 0, HALF, HALF), (0, 0, np.pi / 2)),
        ((0, 0, 2, 2), (0, 0, np.pi / 2)),  # of any length
        ((0, 0.5, 0, np.sqrt(0.75)), (0, np.pi / 3, 0)),
        ((-HALF, 0, 0, -HALF), (np.pi / 2, 0, 0)),  # -q is the same turn
    ],
)
def test_quaternions_of_simple_turns(xyzw, euler):
    np.testing.assert_allclose(euler_from_quaternion(np.array([xyzw], float))[0], euler, atol=1e-7)


def test_random_rotations_agree_with_scipy():
    turns = Rotation.random(500, random_state=3)
    quaternions, euler = turns.as_quat(), turns.as_euler("xyz")
    np.testing.assert_allclose(matrix_from_quaternion(quaternions), turns.as_matrix(), atol=1e-12)
    np.testing.assert_allclose(euler_from_quaternion(quaternions), euler, atol=1e-9)
    np.testing.assert_allclose(matrix_from_euler(euler), turns.as_matrix(), atol=1e-12)


@pytest.mark.parametrize("pitch", [np.pi / 2, -np.pi / 2])
def test_at_gimbal_lock_the_angles_still_give_the_rotation(pitch):
    matrix = Rotation.from_euler("xyz", [0.3, pitch, -0.8]).as_matrix()[None]
    euler = euler_from_matrix(matrix)
    assert euler[0, 2] == 0 and euler[0, 1] == pytest.approx(pitch, abs=1e-6)
    np.testing.assert_allclose(matrix_from_euler(euler), matrix, atol=1e-6)


def test_a_quaternion_of_length_0_is_an_error():
    with pytest.raises(DataError, match=r"step 1: the quaternion \[0.0, 0.0, 0.0, 0.0\]"):
        matrix_from_quaternion(np.array([[0, 0, 0, 1.0], [0, 0, 0, 0]]))
    with pytest.raises(DataError, match="step 0"):
        matrix_from_quaternion(np.array([[0, 0, np.nan, 1.0]]))


def test_a_displacement_in_a_turned_frame():
    """The frame is turned by 90 degrees about z: its x axis is the base's y axis."""
    frame = np.array([[0, 0, np.pi / 2]])
    # 1 along the base's y is 1 along the frame's x; 2 along the base's x is -2 along its y. A turn
    # of 0.3 about the base's x is one of -0.3 about the frame's y.
    seen = in_frame(np.array([[2.0, 1.0, 5.0, 0.3, 0.0, 0.0]]), frame)
    np.testing.assert_allclose(seen, [[1, -2, 5, 0, -0.3, 0]], atol=1e-12)


def test_displacements_in_random_frames_agree_with_scipy():
    rng = np.random.default_rng(5)
    displacement, frame = rng.normal(size=(50, 6)), rng.uniform(-1.4, 1.4, size=(50, 3))
    turn, to_base = (Rotation.from_euler("xyz", a) for a in (displacement[:, 3:], frame))
    seen = in_frame(displacement, frame)
    np.testing.assert_allclose(seen[:, :3], to_base.inv().apply(displacement[:, :3]), atol=1e-12)
    expected = (to_base.inv() * turn * to_base).as_matrix()
    np.testing.assert_allclose(matrix_from_euler(seen[:, 3:]), expected, atol=1e-12)


def test_angles_by_the_shorter_way():
    got = wrapped(np.array([0.0, 3.0, 3.5, -3.5, 2 * np.pi]))
    np.testing.assert_allclose(got, [0, 3, 3.5 - 2 * np.pi, 2 * np.pi - 3.5, 0], atol=1e-12)
