"""The frames at which samples may start, and the notation for the episodes of a split."""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from imagewam_jax.data.index.dataset_index import SplitIndex
from imagewam_jax.data.transforms.standardize import NO_TEXT, StandardizedSplit
from imagewam_jax.errors import DataError

# What to do with steps that have no instruction.
UNLABELLED = ("error", "drop", "blank")


class SplitSpec(NamedTuple):
    """Episodes of a split in the notation of TFDS, such as "train[:95%]".

    name: the split. start, stop: an episode's number or a percentage, "" for the split's own end.
    """

    name: str
    start: str
    stop: str

    def episodes(self, count: int) -> tuple[int, int]:
        """The first episode and one behind the last, of `count`; percentages are rounded."""
        start = _episode(self.start, count) if self.start else 0
        stop = _episode(self.stop, count) if self.stop else count
        return start, max(start, stop)


def find_start_frames(
    split: SplitIndex,
    standardized: StandardizedSplit,
    *,
    every: int = 1,
    episodes: tuple[int, int] | None = None,
    unlabelled: str = "blank",
) -> Int64[np.ndarray, " samples"]:
    """The frames of steps 0, every, 2*every, ... of each episode at which a sample may start.

    every: the official `sample_index_stride` (docs/spec/imagewam_flux2.md, 7.1).
    episodes: the first episode and one behind the last; all by default.
    unlabelled: what to do with steps without an instruction: "error" refuses the dataset, "drop"
      leaves them out, "blank" keeps them.

    DataError: there are steps without an instruction and they are refused.
    """
    if every < 1:
        raise DataError(f"samples every {every} steps, expected at least 1")
    check_unlabelled(unlabelled)
    first, last = episodes or (0, split.num_episodes)
    frames = np.arange(split.episode_start[first], split.episode_start[last])
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


def parse_split(text: str) -> SplitSpec:
    """Parses the name of a split with an optional range: "train", "train[:95%]", "train[10:20]".

    DataError: the text has another form.
    """
    match = re.fullmatch(r"(\w+)(?:\[(\d*|\d+%):(\d*|\d+%)\])?", text)
    if match is None:
        raise DataError(f"split {text!r}; expected such as 'train', 'train[:95%]', 'train[10:20]'")
    return SplitSpec(match[1], match[2] or "", match[3] or "")


def _episode(bound: str, count: int) -> int:
    share = round(int(bound[:-1]) * count / 100) if bound.endswith("%") else int(bound)
    return min(share, count)
