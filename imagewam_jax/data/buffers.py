"""Memory for images that is used again.

New memory is dear: the kernel clears each page of it before the first write, which costs a batch
of images 10 to 20 % of what its decoding does.
"""

import collections
import math

import numpy as np
from jaxtyping import UInt8

# libjpeg-turbo writes past the cache into rows that start at a multiple of 32 bytes, and takes 4 to
# 14 % longer for it.
_ALIGNMENT, _OFFSET = 64, 16


class ImageBuffers:
    """Arrays of one shape. One that nobody refers to any more, nor to a part, is handed out again.

    Safe to use from threads.
    """

    def __init__(self, shape: tuple[int, ...], keep: int):
        """`keep`: how many unused ones stay in memory."""
        self._shape = shape
        self._unused: collections.deque[np.ndarray] = collections.deque(maxlen=keep)

    def take(self) -> UInt8[np.ndarray, "..."]:
        """An array that holds anything."""
        try:
            memory = self._unused.pop()
        except IndexError:
            memory = _new_memory(self._shape)
        return np.asarray(_Loan(memory, self._unused))


class _Loan:
    """What an array and all views of it refer to as the owner of their memory."""

    def __init__(self, memory: np.ndarray, unused: "collections.deque[np.ndarray]"):
        self._memory, self._unused = memory, unused
        self.__array_interface__ = memory.__array_interface__

    def __del__(self):
        self._unused.append(self._memory)


def _new_memory(shape: tuple[int, ...]) -> UInt8[np.ndarray, "..."]:
    size = math.prod(shape)
    memory = np.empty(size + 2 * _ALIGNMENT, np.uint8)
    start = (_OFFSET - memory.ctypes.data) % _ALIGNMENT
    return memory[start : start + size].reshape(shape)
