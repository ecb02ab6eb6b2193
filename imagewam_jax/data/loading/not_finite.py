"""What becomes of steps whose action or state holds a NaN or an infinite number."""

import logging
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.index.dataset_index import SplitIndex
from imagewam_jax.data.loading.splits import Selection, selected_rows
from imagewam_jax.errors import DataError

_LOG = logging.getLogger(__name__)
# Refuse them, or leave out the samples that touch them, or their whole episodes.
NOT_FINITE = ("error", "drop_steps", "drop_episodes")


def without_not_finite(selection: Selection, spec: DatasetSpec, how: str) -> Selection:
    """A selection without the episodes that are to be left out; what is left out is logged.

    how: one of `NOT_FINITE`. With "drop_steps" the steps stay, for `touches_not_finite`, as they
    are between others. DataError: numbers are not finite and are refused, or no episode is left.
    """
    if how not in NOT_FINITE:
        raise DataError(f"data.not_finite is {how!r}, expected one of {list(NOT_FINITE)}")
    rows = selected_rows(selection, selection.standardized.not_finite)
    if not len(rows):
        return selection
    episodes = np.unique(selection.split.frame_episode[rows])
    found = (
        f"{spec.name}: {len(rows)} steps in {len(episodes)} of {len(selection.episodes)} episodes "
        f"have numbers that are not finite, first {_describe(selection, spec, int(rows[0]))}"
    )
    if how == "error":
        raise DataError(
            f'{found}; leave out the samples that touch them with data.not_finite="drop_steps", '
            'or their episodes with "drop_episodes"'
        )
    what = "the samples that touch them" if how == "drop_steps" else "these episodes"
    _LOG.warning("%s; %s are left out (data.not_finite=%r)", found, what, how)
    if how == "drop_steps":
        return selection
    left = np.setdiff1d(selection.episodes, episodes)
    if not len(left):
        raise DataError(f'{found}; data.not_finite="drop_episodes" leaves no episode')
    return selection._replace(episodes=left)


def touches_not_finite(
    selection: Selection, start_frames: Int64[np.ndarray, " n"], horizon: int, stride: int
) -> Bool[np.ndarray, " n"]:
    """Whether the state or an action of the samples that start there is not finite.

    Beyond the end of an episode a sample touches its last step.
    """
    split, standardized = selection.split, selection.standardized
    rows = standardized.not_finite
    if not len(rows):
        return np.zeros(len(start_frames), bool)
    touches = np.isin(start_frames, rows[~np.isfinite(standardized.states[rows]).all(1)])
    rows = rows[~np.isfinite(standardized.actions[rows]).all(1)]
    near = np.flatnonzero(
        np.isin(split.frame_episode[start_frames], np.unique(split.frame_episode[rows]))
    )
    episode = split.frame_episode[start_frames[near]]
    last = split.episode_start[episode] + standardized.episode_steps[episode] - 1
    chunks = start_frames[near, None] + stride * np.arange(horizon)
    touches[near] |= np.isin(np.minimum(chunks, last[:, None]), rows).any(1)
    return touches


def _describe(selection: Selection, spec: DatasetSpec, row: int) -> str:
    """Where a step is, and the first of its numbers that is not finite."""
    split, standardized = selection.split, selection.standardized
    frame = int(standardized.frames[row])
    for field, encoding, values, keys in (
        ("action", spec.action, standardized.actions, spec.action_keys),
        ("state", spec.state, standardized.states, spec.state_keys),
    ):
        for dim in np.flatnonzero(~np.isfinite(values[row])):
            number = f"{field} {encoding.dims[dim]!r} is {values[row, dim]}"
            return f"{split.describe_frame(frame)}: {number}, from {_sources(split, keys, frame)}"
    raise AssertionError(row)


def _sources(split: SplitIndex, keys: Sequence[str], frame: int) -> list[str]:
    """The keys whose numbers are not finite at a frame; all keys where a transform made them."""
    stored = {
        key: np.asarray(split.steps[key][frame : frame + 1]) for key in keys if key in split.steps
    }
    bad = [k for k, v in stored.items() if v.dtype.kind == "f" and not np.isfinite(v).all()]
    return bad or list(keys)
