"""Rotations: quaternions are (x, y, z, w), Euler angles (roll, pitch, yaw) in radians.

There is one convention throughout: R = Rz(yaw) Ry(pitch) Rx(roll), turns about the fixed axes x, y
and z in that order, as in SciPy's `Rotation.as_euler("xyz")` and the public Open-X loaders.
"""

import numpy as np
from jaxtyping import Float

from imagewam_jax.errors import DataError

GIMBAL_LOCK = 1 - 1e-12  # beyond this |sin(pitch)|, in float64, roll and yaw are one angle


def wrapped(angles: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n"]:
    """The same angles in [-pi, pi)."""
    return (angles + np.pi) % (2 * np.pi) - np.pi


def matrix_from_quaternion(xyzw: Float[np.ndarray, "t 4"]) -> Float[np.ndarray, "t 3 3"]:
    """Rotation matrices, float64, of quaternions of any length but 0, which is a DataError."""
    quaternion = np.asarray(xyzw, np.float64)
    norm = np.linalg.norm(quaternion, axis=-1, keepdims=True)
    if not (norm > 0).all():
        step = int(np.flatnonzero(~(norm[:, 0] > 0))[0])
        raise DataError(f"step {step}: the quaternion {quaternion[step].tolist()} is no rotation")
    x, y, z, w = np.moveaxis(quaternion / norm, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_from_euler(angles: Float[np.ndarray, "t 3"]) -> Float[np.ndarray, "t 3 3"]:
    """Rotation matrices of Euler angles, float64."""
    roll, pitch, yaw = np.moveaxis(np.asarray(angles, np.float64), -1, 0)
    (cr, sr), (cp, sp), (cy, sy) = ((np.cos(a), np.sin(a)) for a in (roll, pitch, yaw))
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def euler_from_matrix(matrix: Float[np.ndarray, "t 3 3"]) -> Float[np.ndarray, "t 3"]:
    """Euler angles with pitch in [-pi/2, pi/2]; yaw is 0 where it cannot be told from roll."""
    m = np.asarray(matrix, np.float64)
    sin_pitch = np.clip(-m[:, 2, 0], -1, 1)
    locked = np.abs(sin_pitch) > GIMBAL_LOCK
    roll = np.where(locked, np.arctan2(-m[:, 1, 2], m[:, 1, 1]), np.arctan2(m[:, 2, 1], m[:, 2, 2]))
    yaw = np.where(locked, 0.0, np.arctan2(m[:, 1, 0], m[:, 0, 0]))
    return np.stack([roll, np.arcsin(sin_pitch), yaw], axis=-1)


def euler_from_quaternion(xyzw: Float[np.ndarray, "t 4"]) -> Float[np.ndarray, "t 3"]:
    """Euler angles as `euler_from_matrix` returns them."""
    return euler_from_matrix(matrix_from_quaternion(xyzw))


def in_frame(
    displacement: Float[np.ndarray, "t 6"], frame_euler: Float[np.ndarray, "t 3"]
) -> Float[np.ndarray, "t 6"]:
    """Expresses a displacement (x, y, z, roll, pitch, yaw) of the base frame in a turned frame.

    R is the turned frame's orientation in the base frame: the translation d becomes R^-1 d, the
    turn D becomes R^-1 D R.
    """
    to_frame = matrix_from_euler(frame_euler).swapaxes(-1, -2)
    translation = np.einsum("tij,tj->ti", to_frame, np.asarray(displacement[:, :3], np.float64))
    turn = to_frame @ matrix_from_euler(displacement[:, 3:6]) @ to_frame.swapaxes(-1, -2)
    return np.concatenate([translation, euler_from_matrix(turn)], axis=1)
