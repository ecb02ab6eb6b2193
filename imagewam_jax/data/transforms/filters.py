"""Filters of steps: successful episodes, steps with motion, all but the first step."""

import numpy as np
from jaxtyping import Bool, Float, Float32

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.transforms.base import Steps, feature, step_filter
from imagewam_jax.errors import DataError

# A stored displacement or velocity up to this size is no motion, as in the public loaders.
NO_MOTION = 1e-5
# Bimanual idle frames: the norm of action minus state, in radians or units of gripper opening.
AT_REST = 1e-3
SHORTEST = 5  # frames; shorter idle runs are kept
GRIPPERS = (6, 13)
ARMS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12)


@step_filter(version=1, options=("success_key",))
def success(
    steps: Steps,
    spec: DatasetSpec,
    action: Float32[np.ndarray, "t a"],
    state: Float32[np.ndarray, "t p"],
) -> Bool[np.ndarray, " t"]:
    """Allows the steps of successful episodes, by the feature that the option success_key names.

    The default is the feature "success". A number or a flag means success when it is not 0. A text
    is the path of a recording, and means success when one of its folders is called "success", as
    DROID sorts its recordings.
    """
    values = feature(steps, spec.option("success_key", "success"))[: len(action)]
    if values.dtype.kind == "O":
        return np.array([b"success" in path.split(b"/") for path in values], bool)
    return np.asarray(values).reshape(len(values), -1).any(axis=1)


@step_filter(version=1)
def non_idle(
    steps: Steps,
    spec: DatasetSpec,
    action: Float32[np.ndarray, "t a"],
    state: Float32[np.ndarray, "t p"],
) -> Bool[np.ndarray, " t"]:
    """Allows steps whose action has a displacement beyond 1e-5. The gripper does not count."""
    relative = np.array(spec.action.relative, bool)
    if not relative.any():
        raise DataError(f"{spec.name}: 'non_idle' needs actions with displacements, it has none")
    return (np.abs(action[:, relative]) > NO_MOTION).any(axis=1)


@step_filter(version=1)
def not_first(
    steps: Steps,
    spec: DatasetSpec,
    action: Float32[np.ndarray, "t a"],
    state: Float32[np.ndarray, "t p"],
) -> Bool[np.ndarray, " t"]:
    """Allows all steps but the first of an episode."""
    return np.arange(len(action)) > 0


def idle_frames(
    action: Float[np.ndarray, "t 14"], state: Float[np.ndarray, "t 14"]
) -> Bool[np.ndarray, " t"]:
    """Frames whose action equals the state, all of it or arms and grippers each, within 1e-3."""
    difference = np.asarray(action, np.float64) - state
    arms = np.linalg.norm(difference[:, ARMS], axis=1)
    grippers = np.linalg.norm(difference[:, GRIPPERS], axis=1)
    whole = np.linalg.norm(difference, axis=1)
    return (whole <= AT_REST) | ((arms <= AT_REST) & (grippers <= AT_REST))


def kept_ranges(idle: Bool[np.ndarray, " t"]) -> list[tuple[int, int]]:
    """[start, end) pairs, in order, of the frames outside of idle runs of 5 frames or more.

    A run that reaches the episode's end is kept whatever its length.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], idle, [False]]).astype(np.int8)))
    runs = edges.reshape(-1, 2).tolist()
    start, kept = 0, []
    for run_start, run_end in runs:
        if run_end - run_start < SHORTEST or run_end == len(idle):
            continue
        if run_start > start:
            kept.append((start, run_start))
        start = run_end
    if start < len(idle):
        kept.append((start, len(idle)))
    return kept


@step_filter(version=1)
def bimanual_non_idle(
    steps: Steps,
    spec: DatasetSpec,
    action: Float32[np.ndarray, "t a"],
    state: Float32[np.ndarray, "t p"],
) -> Bool[np.ndarray, " t"]:
    """Drops long idle stretches of bimanual recordings (docs/spec/imagewam_flux2.md, 7.8).

    Actions and states are absolute, 2 x (6 joints, gripper).

    A frame is idle when the commanded joints are where the joints already are. Short pauses are
    part of a movement and are kept, and so is the stretch in which an episode comes to rest.
    """
    if action.shape[1] != 14 or state.shape[1] != 14:
        raise DataError(
            f"{spec.name}: 'bimanual_non_idle' needs 14 dimensions of action and state, found "
            f"{action.shape[1]} and {state.shape[1]}"
        )
    kept = np.zeros(len(action), bool)
    for start, end in kept_ranges(idle_frames(action, state)):
        kept[start:end] = True
    return kept
