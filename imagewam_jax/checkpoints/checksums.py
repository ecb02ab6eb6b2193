"""Sums of arrays' bits, by which damage to stored arrays is noticed.

File systems and Orbax notice what is missing, not what is other than it was. The sum is of the bits
of all elements as unsigned integers, modulo 2**32: a single flipped bit always changes it, and no
order, sharding or number of hosts does, so it can be computed wherever an array lies.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Shaped, UInt32


def array_checksums(tree: Any) -> dict[str, int]:
    """By dotted path, computed on the devices that the arrays are on; waits for it."""
    return {path: int(value) for path, value in jax.device_get(_sums(by_path(tree))).items()}


def differing(arrays: Mapping[str, Array], saved: Mapping[str, int]) -> list[str]:
    """Paths of the arrays whose sum is not the one that was saved; one without a sum passes."""
    found = array_checksums(arrays)
    return [path for path in sorted(found) if saved.get(path, found[path]) != found[path]]


def by_path(tree: Any) -> dict[str, Any]:
    """Leaves by their dotted paths, of trees of any kind."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


@jax.jit
def _sums(arrays: Mapping[str, Array]) -> dict[str, UInt32[Array, ""]]:
    return jax.tree.map(_sum_of_bits, dict(arrays))


def _sum_of_bits(x: Shaped[Array, "..."]) -> UInt32[Array, ""]:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}[x.dtype.itemsize]
    bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, unsigned)
    return jnp.sum(bits, dtype=jnp.uint32)
