"""Valid start frames of samples, as arrays of frame numbers."""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from imagewam_jax.data.index.dataset_index import SplitIndex
from imagewam_jax.data.transforms.standardize import NO_TEXT, Standard
from imagewam_jax.errors import DataError

# What becomes of steps that no instruction is known of.
UNLABELLED = ("error", "drop", "blank")


class Part(NamedTuple):
    """Some episodes of a split, in the notation of TFDS; "" is the split's own end."""

    split: str
    start: str
    stop: str

    def episodes(self, count: int) -> tuple[int, int]:
        """The first and one behind the last, of `count`; shares are rounded to the closest."""
        start = _episode(self.start, count) if self.start else 0
        stop = _episode(self.stop, count) if self.stop else count
        return start, max(start, stop)


def find_start_frames(
    split: SplitIndex,
    standard: Standard,
    *,
    every: int = 1,
    episodes: tuple[int, int] | None = None,
    unlabelled: str = "blank",
) -> Int64[np.ndarray, " anchors"]:
    """Usable steps 0, every, 2*every, ... of each episode, the last included.

    every: the official `sample_index_stride` (docs/spec/imagewam_flux2.md, 7.1).
    episodes: the first and one behind the last, of all.
    unlabelled: of steps without an instruction, "error" refuses the dataset, "drop" leaves them
      out, "blank" keeps them.

    DataError: there are steps without an instruction and they are refused.
    """
    if every < 1:
        raise DataError(f"samples every {every} steps, expected at least 1")
    if unlabelled not in UNLABELLED:
        raise DataError(f"unlabelled is {unlabelled!r}, expected one of {list(UNLABELLED)}")
    first, last = episodes or (0, split.num_episodes)
    frames = np.arange(split.episode_start[first], split.episode_start[last])
    steps = frames - split.episode_start[split.frame_episode[frames]]
    frames = frames[(steps % every == 0) & standard.usable[frames]]
    labelled = standard.text_ids[frames, 0] != NO_TEXT
    if unlabelled == "error" and not labelled.all():
        frame = int(standard.frames[frames[~labelled][0]])
        raise DataError(
            f"{(~labelled).sum()} of {len(frames)} steps have no instruction, first in "
            f'{split.describe_frame(frame)}; leave them out with data.unlabelled="drop", or keep '
            'them with "blank"'
        )
    return frames[labelled] if unlabelled == "drop" else frames


def parse_part(text: str) -> Part:
    """A split or some of its episodes: "train", "train[:95%]", "train[10:20]".

    DataError: it is nothing of the kind.
    """
    match = re.fullmatch(r"(\w+)(?:\[(\d*|\d+%):(\d*|\d+%)\])?", text)
    if match is None:
        raise DataError(f"split {text!r}; expected such as 'train', 'train[:95%]', 'train[10:20]'")
    return Part(match[1], match[2] or "", match[3] or "")


def _episode(bound: str, count: int) -> int:
    share = round(int(bound[:-1]) * count / 100) if bound.endswith("%") else int(bound)
    return min(share, count)
