"""Which action of which chunk is executed at each step (docs/spec/serving.md, 5).

Steps are counted, and no clock is read. A chunk has an origin: the step at which its observation
was made, whose action is its first. When it arrives, the robot may be some steps further.
"""

from collections.abc import Collection

import numpy as np

_ENSEMBLE_DECAY = 0.01  # of a chunk's weight against the one before it (ACT, arXiv 2304.13705)


class AlignedChunks:
    """The newest chunk replaces what is left of the one before, at the step where the robot is.

    blend: over so many steps that both chunks have, the old one fades into the new one, in
    dimensions `blend_dims` alone: what is not a continuous quantity must not be averaged.
    """

    def __init__(self, *, blend: int = 0, blend_dims: Collection[int] = ()):
        self.step = 0  # the next to be executed
        self._blend, self._blend_dims = blend, sorted(blend_dims)
        self._actions: np.ndarray | None = None  # [step, action dimension], from `self.step` on

    def __len__(self) -> int:
        """Actions that are left."""
        return 0 if self._actions is None else len(self._actions)

    @property
    def left(self) -> np.ndarray:
        """The actions [step, action dimension] that are left, of which there must be one."""
        return self._actions

    def add(self, actions: np.ndarray, origin: int) -> None:
        """Takes a chunk [step, action dimension], the origin of which is not after `step`."""
        new = np.array(actions[self.step - origin :])
        overlap = min(self._blend, len(self), len(new))
        if overlap and self._blend_dims:
            weight = (np.arange(overlap, dtype=new.dtype) + 1) / (overlap + 1)
            for dim in self._blend_dims:
                old = self._actions[:overlap, dim]
                new[:overlap, dim] = (1 - weight) * old + weight * new[:overlap, dim]
        self._actions = new

    def take(self) -> np.ndarray | None:
        """The action [action dimension] of this step; None: there is none, and the step stays."""
        if not len(self):
            return None
        action, self._actions = self._actions[0], self._actions[1:]
        self.step += 1
        return action


class EnsembledChunks:
    """The mean of what all chunks say of a step, the oldest weighing most; of dimensions
    `newest_dims`, such as an open or closed gripper, the newest chunk decides."""

    def __init__(self, *, newest_dims: Collection[int] = ()):
        self.step = 0  # the next to be executed
        self._newest_dims = sorted(newest_dims)
        self._chunks: list[tuple[int, np.ndarray]] = []  # origin, actions; the oldest first

    def __len__(self) -> int:
        """The number of steps, counted from `step`, for which some chunk has an action."""
        return max((origin + len(each) - self.step for origin, each in self._chunks), default=0)

    def add(self, actions: np.ndarray, origin: int) -> None:
        """Takes a chunk [step, action dimension], the origin of which is not after `step`."""
        self._chunks.append((origin, np.asarray(actions)))

    def take(self) -> np.ndarray | None:
        """The action [action dimension] of this step; None: there is none, and the step stays."""
        self._chunks = [(o, each) for o, each in self._chunks if o + len(each) > self.step]
        if not self._chunks:
            return None
        said = np.stack([actions[self.step - origin] for origin, actions in self._chunks])
        weight = np.exp(-_ENSEMBLE_DECAY * np.arange(len(said)))
        action = ((weight / weight.sum()) @ said).astype(said.dtype)
        action[self._newest_dims] = said[-1, self._newest_dims]
        self.step += 1
        return action
