"""The frames at which samples may start."""

import numpy as np
from jaxtyping import Int64

from imagewam_jax.data.index.dataset_index import SplitIndex
from imagewam_jax.data.transforms.standardize import NO_TEXT, StandardizedSplit
from imagewam_jax.errors import DataError

# What to do with steps that have no instruction.
UNLABELLED = ("error", "drop", "blank")


def find_start_frames(
    split: SplitIndex,
    standardized: StandardizedSplit,
    *,
    every: int = 1,
    episodes: Int64[np.ndarray, " episodes"] | None = None,
    unlabelled: str = "blank",
) -> Int64[np.ndarray, " samples"]:
    """The frames of steps 0, every, 2*every, ... of each episode at which a sample may start.

    every: the official `sample_index_stride` (docs/spec/imagewam_flux2.md, 7.1).
    episodes: their numbers, ascending; all by default.
    unlabelled: what to do with steps without an instruction: "error" refuses the dataset, "drop"
      leaves them out, "blank" keeps them.

    DataError: there are steps without an instruction and they are refused.
    """
    if every < 1:
        raise DataError(f"samples every {every} steps, expected at least 1")
    check_unlabelled(unlabelled)
    if episodes is None:
        episodes = np.arange(split.num_episodes)
    chosen = np.zeros(split.num_episodes, bool)
    chosen[episodes] = True
    frames = np.flatnonzero(chosen[split.frame_episode])
    steps = frames - split.episode_start[split.frame_episode[frames]]
    frames = frames[(steps % every == 0) & standardized.can_start[frames]]
    labelled = standardized.text_ids[frames, 0] != NO_TEXT
    if unlabelled == "error" and not labelled.all():
        frame = int(standardized.frames[frames[~labelled][0]])
        raise DataError(
            f"{(~labelled).sum()} of {len(frames)} steps have no instruction, first in "
            f'{split.describe_frame(frame)}; leave them out with data.unlabelled="drop", or keep '
            'them with "blank"'
        )
    return frames[labelled] if unlabelled == "drop" else frames


def check_unlabelled(unlabelled: str) -> None:
    """DataError: it is none of `UNLABELLED`."""
    if unlabelled not in UNLABELLED:
        raise DataError(f"data.unlabelled is {unlabelled!r}, expected one of {list(UNLABELLED)}")
