"""Valid start frames of samples, as arrays of frame numbers."""

import numpy as np
from jaxtyping import Int64

from imagewam_jax.data.index import SplitIndex


def frame_anchors(split: SplitIndex, every: int = 1) -> Int64[np.ndarray, " anchors"]:
    """Steps 0, every, 2*every, ... of each episode; by default all frames, the last included.

    `every` is the official `sample_index_stride` (spec imagewam_flux2 7.1).
    """
    if every < 1:
        raise ValueError(f"every is {every}, expected at least 1")
    frames = np.arange(split.num_frames)
    steps = frames - split.episode_start[split.frame_episode]
    return frames[steps % every == 0]
