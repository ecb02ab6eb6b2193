"""The transform of most rows: choose columns, bring rotation and gripper to the common form."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.transforms.base import Standardised, Steps, transform
from imagewam_jax.data.transforms.gripper import OPERATIONS
from imagewam_jax.data.transforms.rotations import euler_from_quaternion, in_frame
from imagewam_jax.data.transforms.stored import as_stored

if TYPE_CHECKING:
    from imagewam_jax.data.registry.spec import DatasetSpec

OPTIONS = ("action_columns", "state_columns", "rotation", "frame", "gripper")
ROTATIONS = ("as_stored", "quaternion")
FRAMES = ("as_stored", "wrist")


@transform(version=1, options=OPTIONS)
def columns(steps: Steps, spec: "DatasetSpec") -> Standardised:
    """In: the features of action_keys and state_keys, each group laid side by side.

    Out: what the options make of them, in this order:
      action_columns, state_columns: numbers of columns to keep (from the end if negative), None
        for a column of zeros; all columns by default.
      rotation: "quaternion" if columns 3 to 6 of the action are (x, y, z, w); they become three
        Euler angles. "as_stored" by default.
      frame: "wrist" turns columns 0 to 5 of the action from the base frame into that of the hand,
        whose Euler angles are columns 3 to 5 of the state. "as_stored" by default.
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


def _one_of(spec: "DatasetSpec", option: str, known: tuple[str, ...]) -> str:
    value = spec.option(option, "as_stored")
    if value not in known:
        raise DataError(f"{spec.name}: {option} is {value!r}, expected one of {sorted(known)}")
    return value


def _expect_width(values: np.ndarray, least: int, spec: "DatasetSpec", what: str) -> None:
    if values.shape[1] < least:
        raise DataError(
            f"{spec.name}: {what} has {values.shape[1]} columns, expected at least {least}"
        )


def _chosen(
    values: Float32[np.ndarray, "t d"], spec: "DatasetSpec", option: str
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
