"""Which steps may start a sample."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float32

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.transforms.base import Steps, step_filter
from imagewam_jax.data.transforms.features import feature

if TYPE_CHECKING:
    from imagewam_jax.data.registry.spec import DatasetSpec

NO_MOTION = 1e-5  # of a stored displacement or velocity; what counts as none in the public loaders


@step_filter(version=1, options=("success_key",))
def success(
    steps: Steps,
    spec: "DatasetSpec",
    action: Float32[np.ndarray, "t a"],
    state: Float32[np.ndarray, "t p"],
) -> Bool[np.ndarray, " t"]:
    """Episodes that succeeded. Reads the feature that the option success_key names, "success".

    A number or a flag is true when it is not 0. A text is the path of a recording, true when one of
    its folders is called "success" (DROID sorts its recordings so).
    """
    values = feature(steps, spec.option("success_key", "success"))[: len(action)]
    if values.dtype.kind == "O":
        return np.array([b"success" in path.split(b"/") for path in values], bool)
    return np.asarray(values).reshape(len(values), -1).any(axis=1)


@step_filter(version=1)
def non_idle(
    steps: Steps,
    spec: "DatasetSpec",
    action: Float32[np.ndarray, "t a"],
    state: Float32[np.ndarray, "t p"],
) -> Bool[np.ndarray, " t"]:
    """Steps whose action moves: a displacement of it is beyond 1e-5. The gripper does not count."""
    relative = np.array(spec.action.relative, bool)
    if not relative.any():
        raise DataError(f"{spec.name}: 'non_idle' needs actions with displacements, it has none")
    return (np.abs(action[:, relative]) > NO_MOTION).any(axis=1)


@step_filter(version=1)
def not_first(
    steps: Steps,
    spec: "DatasetSpec",
    action: Float32[np.ndarray, "t a"],
    state: Float32[np.ndarray, "t p"],
) -> Bool[np.ndarray, " t"]:
    """All steps but the first of an episode."""
    return np.arange(len(action)) > 0
