"""Checksums of arrays on the host, where they are written or read in pieces.

They are those that `store.array_checksums` computes on devices: the sum of the bits of all elements
as unsigned integers, modulo 2**32. So the checksum of an array is the sum of those of its layers,
in any order.
"""

import threading
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

from imagewam_jax.errors import Unreadable


def checksum(piece: Shaped[np.ndarray, "..."]) -> int:
    """The checksum of an array, or what a layer of an array adds to its checksum."""
    bits = piece if piece.dtype == bool else piece.view(f"u{piece.dtype.itemsize}")
    return int(np.sum(bits, dtype=np.uint64)) % 2**32


def joined(checksum: int, other: int) -> int:
    """The checksum of an array from those of two parts of it."""
    return (checksum + other) % 2**32


class ReadChecksums:
    """Compares arrays with their checksums while they are read, whole or layer by layer.

    An array that is read by its layers is compared when the last of them has been read. It can be
    used from several threads.
    """

    def __init__(self, saved: Mapping[str, int], where: str):
        """`saved` has the checksums by the arrays' dotted paths; arrays without one pass. `where`
        is for messages."""
        self._saved, self._where = saved, where
        self._lock = threading.Lock()
        self._layers: dict[str, dict[int, int]] = {}

    def add(
        self, path: str, layer: int | None, piece: Shaped[np.ndarray, "..."], layers: int
    ) -> None:
        """Count one of an array's `layers`, or a whole array (`layer` is None).

        Unreadable: the array is not what was saved.
        """
        if path not in self._saved:
            return
        found = checksum(piece)
        if layer is not None:
            with self._lock:
                counted = self._layers.setdefault(path, {})
                counted[layer] = found
                if len(counted) < layers:
                    return
                found = sum(counted.values()) % 2**32
        if found != self._saved[path]:
            raise Unreadable(f"{self._where}: {path} is not what was saved")
