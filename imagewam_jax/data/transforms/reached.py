"""Actions relabelled from the states that were reached."""

from typing import TYPE_CHECKING

import numpy as np

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.transforms.base import Standardised, Steps, transform
from imagewam_jax.data.transforms.columns import OPTIONS, columns
from imagewam_jax.data.transforms.rotations import wrapped

if TYPE_CHECKING:
    from imagewam_jax.data.registry.spec import DatasetSpec


@transform(version=1, options=OPTIONS)
def reached(steps: Steps, spec: "DatasetSpec") -> Standardised:
    """In: as for `columns`, the state beginning with a pose (x, y, z, roll, pitch, yaw).

    Out: as `columns` makes it, but columns 0 to 5 of the action are the pose of the next step minus
    that of this one, angles by the shorter way round. The last step has no next and is dropped.
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
