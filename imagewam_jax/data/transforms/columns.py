"""The transforms of the registry: they choose columns and convert rotations and grippers.

Most datasets use `columns`; `kuka` and `reached` add to it.
"""

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.transforms.base import (
    ActionsAndStates,
    Steps,
    concatenated,
    numbers,
    transform,
)
from imagewam_jax.data.transforms.gripper import OPERATIONS
from imagewam_jax.data.transforms.rotations import euler_from_quaternion, in_frame, wrapped
from imagewam_jax.errors import DataError

OPTIONS = ("action_columns", "state_columns", "rotation", "frame", "gripper")
ROTATIONS = ("as_stored", "quaternion")
FRAMES = ("as_stored", "wrist")


@transform(version=1)
def as_stored(steps: Steps, spec: DatasetSpec) -> ActionsAndStates:
    """Concatenates the features of action_keys, and those of state_keys, and changes nothing."""
    if not spec.action_keys:
        raise DataError(f"{spec.name}: the transform 'as_stored' needs action_keys")
    length = len(numbers(steps, spec.action_keys[0]))
    return concatenated(steps, spec.action_keys, length), concatenated(
        steps, spec.state_keys, length
    )


@transform(version=1, options=OPTIONS)
def columns(steps: Steps, spec: DatasetSpec) -> ActionsAndStates:
    """Concatenates features as `as_stored` does, then applies the options in this order:

    action_columns, state_columns: numbers of columns to keep (from the end if negative), None
      for a column of zeros; all columns by default.
    rotation: "quaternion" if columns 3 to 6 of the action are (x, y, z, w); they become three
      Euler angles. "as_stored" by default.
    frame: "wrist" turns columns 0 to 5 of the action from the base frame into the frame of the
      hand, whose Euler angles are columns 3 to 5 of the state. "as_stored" by default.
    gripper: a name in `gripper.OPERATIONS`, applied to the last column of the action;
      "as_stored" by default.
    """
    action, state = as_stored(steps, spec)
    action = _chosen(action, spec, "action_columns")
    state = _chosen(state, spec, "state_columns")
    if _one_of(spec, "rotation", ROTATIONS) == "quaternion":
        _expect_width(action, 8, spec, "the action with its quaternion")
        euler = euler_from_quaternion(action[:, 3:7])
        action = np.concatenate([action[:, :3], euler, action[:, 7:]], axis=1).astype(np.float32)
    if _one_of(spec, "frame", FRAMES) == "wrist":
        _expect_width(action, 6, spec, "the action")
        _expect_width(state, 6, spec, "the state")
        action[:, :6] = in_frame(action[:, :6], state[:, 3:6])
    operation = _one_of(spec, "gripper", tuple(OPERATIONS))
    if operation != "as_stored":
        action[:, -1] = OPERATIONS[operation](action[:, -1])
    return action, state


def _one_of(spec: DatasetSpec, option: str, known: tuple[str, ...]) -> str:
    value = spec.option(option, "as_stored")
    if value not in known:
        raise DataError(f"{spec.name}: {option} is {value!r}, expected one of {sorted(known)}")
    return value


def _expect_width(values: np.ndarray, least: int, spec: DatasetSpec, what: str) -> None:
    if values.shape[1] < least:
        raise DataError(
            f"{spec.name}: {what} has {values.shape[1]} columns, expected at least {least}"
        )


def _chosen(
    values: Float32[np.ndarray, "t d"], spec: DatasetSpec, option: str
) -> Float32[np.ndarray, "t c"]:
    chosen: Any = spec.option(option)
    if chosen is None:
        return values
    width = values.shape[1]
    outside = [c for c in chosen if c is not None and not -width <= c < width]
    if outside:
        raise DataError(f"{spec.name}: {option} asks for {outside} of {width} columns")
    picked = [np.zeros(len(values), np.float32) if c is None else values[:, c] for c in chosen]
    return np.stack(picked, axis=1)


class _Inflated(Mapping[str, np.ndarray]):
    """The same features, with bytes decompressed from zlib into rows of float32."""

    def __init__(self, steps: Steps):
        self._steps = steps

    def __getitem__(self, key: str) -> np.ndarray:
        values = self._steps[key]
        if values.dtype.kind != "O" or not all(isinstance(value, bytes) for value in values):
            return values
        try:
            return np.stack([np.frombuffer(zlib.decompress(value), "<f4") for value in values])
        except (zlib.error, ValueError) as error:
            raise DataError(f"feature {key!r} is not zlib-compressed float32: {error}") from error

    def __contains__(self, key: object) -> bool:
        return key in self._steps

    def __iter__(self) -> Iterator[str]:
        return iter(self._steps)

    def __len__(self) -> int:
        return len(self._steps)


@transform(version=1, options=OPTIONS)
def kuka(steps: Steps, spec: DatasetSpec) -> ActionsAndStates:
    """Does what `columns` does; features may also be zlib-compressed float32."""
    return columns(_Inflated(steps), spec)


@transform(version=1, options=OPTIONS)
def reached(steps: Steps, spec: DatasetSpec) -> ActionsAndStates:
    """Applies `columns`, then replaces the action's motion by the motion that the robot made.

    The state begins with a pose (x, y, z, roll, pitch, yaw). Columns 0 to 5 of the action become
    the pose of the next step minus the pose of this one, with angles in [-pi, pi). The last step
    has no next one and is dropped.
    """
    action, state = columns(steps, spec)
    if action.shape[1] < 6 or state.shape[1] < 6:
        raise DataError(
            f"{spec.name}: 'reached' needs actions and states that begin with a pose, found "
            f"{action.shape[1]} and {state.shape[1]} dimensions"
        )
    difference = np.diff(state[:, :6], axis=0)
    difference[:, 3:] = wrapped(difference[:, 3:])
    action = action[:-1].copy()
    action[:, :6] = difference
    return action, state[:-1]
