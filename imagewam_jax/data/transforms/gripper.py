"""Gripper commands of all kinds, brought to one: 1 is open, 0 is closed.

The operations that the public Open-X loaders apply (octo `data_utils.py` and the RLDS loader of
OpenVLA, which agree), written anew, and without two of their flaws: where they leave the values
that end an episode between open and closed as they are, these take the last settled state, and
they need no episode of at least one step.
"""

from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

OPEN_ABOVE, CLOSED_BELOW = 0.95, 0.05  # a continuous command beyond these has settled
MOVING = 0.1  # a relative command of at most this size asks for no change


def clipped(command: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """A command where 1 or more is open and 0 or less is closed."""
    return np.clip(command, 0, 1)


def inverted(command: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """A command where 1 is closed and 0 is open."""
    return 1 - command


def clipped_inverted(command: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """A command where 1 or more is closed and 0 or less (-1 in LIBERO) is open."""
    return 1 - np.clip(command, 0, 1)


def binarised(command: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """A continuous opening in [0, 1] as 0 or 1.

    A gripper on its way is given the state it arrives at: values in [0.05, 0.95] become the next
    settled one. Those that end an episode have none and become the last settled one; in an episode
    without any, what lies above a half is open.
    """
    command = np.asarray(command)
    is_settled = (command > OPEN_ABOVE) | (command < CLOSED_BELOW)
    if not is_settled.any():
        return (command > 0.5).astype(np.float32)
    settled = np.flatnonzero(is_settled)
    following = np.searchsorted(settled, np.arange(len(command)))
    source = settled[np.minimum(following, len(settled) - 1)]
    return (command[source] > OPEN_ABOVE).astype(np.float32)


def relative_to_absolute(command: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """Commands to move (+1 close, -1 open, near 0 keep) as the state they lead to, 0 or 1.

    A state holds until a command beyond 0.1 changes it. Before the first such command the gripper
    is where that command is not redundant: open before closing. Without any it is open.
    """
    command = np.asarray(command)
    moves = np.flatnonzero(np.abs(command) > MOVING)
    if not len(moves):
        return np.ones(len(command), np.float32)
    opens = command[moves] < 0
    latest = np.searchsorted(moves, np.arange(len(command)), side="right") - 1
    state = np.where(latest < 0, ~opens[0], opens[np.maximum(latest, 0)])
    return state.astype(np.float32)


def always_open(command: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """For a tool that does not close."""
    return np.ones_like(command)


OPERATIONS = MappingProxyType(
    {
        "as_stored": lambda command: command,
        "clip": clipped,
        "invert": inverted,
        "clip_invert": clipped_inverted,
        "binarise": binarised,
        "relative": relative_to_absolute,
        "open": always_open,
    }
)
