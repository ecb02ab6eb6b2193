"""Conversions of gripper commands to one convention: 1 is open, 0 is closed.

These are the operations that the public Open-X loaders apply (octo `data_utils.py` and the RLDS
loader of OpenVLA, which agree), written anew and without two of their flaws: where an episode ends
with values between open and closed, the loaders keep the values and these take the last settled
state, and an episode may have no steps.
"""

from types import MappingProxyType

import numpy as np
from jaxtyping import Float32

OPEN_ABOVE, CLOSED_BELOW = 0.95, 0.05  # a continuous command outside of these has settled
MOVING = 0.1  # a relative command of at most this size asks for no change


def clipped(command: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """Clips a command in which 1 or more is open and 0 or less is closed."""
    return np.clip(command, 0, 1)


def inverted(command: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """Inverts a command in which 1 is closed and 0 is open."""
    return 1 - command


def clipped_inverted(command: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """Clips and inverts a command: 1 or more is closed, 0 or less (-1 in LIBERO) is open."""
    return 1 - np.clip(command, 0, 1)


def binarized(command: Float32[np.ndarray, " t"]) -> Float32[np.ndarray, " t"]:
    """Rounds a continuous opening in [0, 1] to 0 or 1.

    A moving gripper gets the state at which it arrives: values in [0.05, 0.95] become the next
    settled value. At the end of an episode, where no settled value follows, they become the last
    one. In an episode without settled values, what lies above a half is open.
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
    """Turns commands to move (+1 close, -1 open, near 0 keep) into the state that follows, 0 or 1.

    A state holds until a command beyond 0.1 changes it. Before the first such command the gripper
    is in the opposite state: open before closing. Without any such command it is open.
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
    """Returns ones, for a tool that does not close."""
    return np.ones_like(command)


OPERATIONS = MappingProxyType(
    {
        "as_stored": lambda command: command,
        "clip": clipped,
        "invert": inverted,
        "clip_invert": clipped_inverted,
        "binarise": binarized,
        "relative": relative_to_absolute,
        "open": always_open,
    }
)
