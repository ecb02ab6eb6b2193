"""Checksums of arrays, and whether their numbers are finite.

A checksum is the sum of the bits of all elements as unsigned integers, modulo 2**32. It is computed
on the devices that hold an array; or on the host, where an array is written or read in pieces: the
checksum of an array is the sum of those of its layers, in any order.
"""

import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Shaped, UInt32

from imagewam_jax.errors import Unreadable


def array_checksums(tree: Any) -> dict[str, int]:
    """The checksum of each array by its dotted path, computed on the devices that hold the arrays.

    File systems and Orbax notice missing data, but not changed data; a single flipped bit always
    changes the sum. It does not depend on order, sharding or the number of hosts, so it can be
    computed wherever an array is.
    """
    return {path: int(value) for path, value in jax.device_get(_checksums(by_path(tree))).items()}


def differing(
    arrays: Mapping[str, Array], saved: Mapping[str, int], dtypes: Mapping[str, Any] | None = None
) -> list[str]:
    """The paths of arrays whose checksum is not the saved one; those without a saved one pass.

    `dtypes` has those that were saved, where an array can have been widened since.
    """
    same = {path: x for path, x in arrays.items() if x.dtype == (dtypes or {}).get(path, x.dtype)}
    widened = {path: x for path, x in arrays.items() if path not in same}
    found = jax.device_get(_checksums(same) | _widened_checksums(widened))
    return [path for path in sorted(found) if saved.get(path, found[path]) != found[path]]


def not_finite(tree: Any) -> list[str]:
    """The paths of arrays that hold a NaN or an infinity, computed where the arrays are."""
    finite = jax.device_get(_all_finite(by_path(tree)))
    return [path for path in sorted(finite) if not finite[path]]


def by_path(tree: Any) -> dict[str, Any]:
    """The leaves of any kind of tree, by their dotted paths."""
    return {dotted(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def dotted(path: Any) -> str:
    """The path of a leaf as JAX has it, as names between dots."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


@jax.jit
def _checksums(arrays: Mapping[str, Array]) -> dict[str, UInt32[Array, ""]]:
    return jax.tree.map(_checksum, dict(arrays))


@jax.jit
def _widened_checksums(arrays: Mapping[str, Array]) -> dict[str, UInt32[Array, ""]]:
    """The checksums that float32 arrays had in bfloat16, whose bits are the upper half of theirs.

    Bits are shifted and not numbers converted, since devices may flush small numbers to zero.
    """
    bits = jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x, jnp.uint32), dict(arrays))
    return jax.tree.map(lambda x: jnp.sum(x >> 16, dtype=jnp.uint32), bits)


def keeps_bits(saved: Any, restored: Any) -> bool:
    """Whether the bits of an array that was saved in a dtype can be told after it was restored."""
    return saved == restored or (saved == jnp.bfloat16 and restored == jnp.float32)


@jax.jit
def _all_finite(arrays: Mapping[str, Array]) -> dict[str, Bool[Array, ""]]:
    return jax.tree.map(lambda x: jnp.isfinite(x).all(), dict(arrays))


def _checksum(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
    return jnp.sum(bits, dtype=jnp.uint32)


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
