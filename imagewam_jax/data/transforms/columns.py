"""The transform of most rows: choose columns, then put the gripper right."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.transforms.base import Standardised, Steps, transform
from imagewam_jax.data.transforms.gripper import OPERATIONS
from imagewam_jax.data.transforms.stored import as_stored

if TYPE_CHECKING:
    from imagewam_jax.data.registry.spec import DatasetSpec

OPTIONS = ("action_columns", "state_columns", "gripper")


@transform(version=1, options=OPTIONS)
def columns(steps: Steps, spec: "DatasetSpec") -> Standardised:
    """In: the features of action_keys and state_keys, each group laid side by side.

    Out: the chosen columns of each, the last of the action after its gripper operation. Options:
      action_columns, state_columns: numbers of columns (from the end if negative), None for a
        column of zeros; all columns by default.
      gripper: a name in `gripper.OPERATIONS`; "as_stored" by default.
    """
    action, state = as_stored(steps, spec)
    action = _chosen(action, spec.option("action_columns"), spec, "action_columns")
    state = _chosen(state, spec.option("state_columns"), spec, "state_columns")
    operation = spec.option("gripper", "as_stored")
    if operation not in OPERATIONS:
        raise DataError(
            f"{spec.name}: no gripper operation {operation!r}, there are {sorted(OPERATIONS)}"
        )
    action[:, -1] = OPERATIONS[operation](action[:, -1])
    return action, state


def _chosen(
    values: Float32[np.ndarray, "t d"], chosen: Any, spec: "DatasetSpec", option: str
) -> Float32[np.ndarray, "t c"]:
    if chosen is None:
        return values
    width = values.shape[1]
    outside = [c for c in chosen if c is not None and not -width <= c < width]
    if outside:
        raise DataError(f"{spec.name}: {option} asks for {outside} of {width} columns")
    picked = [np.zeros(len(values), np.float32) if c is None else values[:, c] for c in chosen]
    return np.stack(picked, axis=1)
