"""What every attention kernel takes and returns."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float


class KV(NamedTuple):
    """Keys and values of one segment, after norm and rotation."""

    k: Float[Array, "b t n h"]
    v: Float[Array, "b t n h"]


# Takes queries [b s n h], a sequence of KV and, as `length_b`, the number of valid keys of each
# sample or None; returns what it attended to, in the shape and dtype of the queries.
Attend = Callable[..., Float[Array, "b s n h"]]


def joined(segments: Sequence[KV]) -> KV:
    """All segments as one, for kernels that take keys as one array: a copy where there are two."""
    if len(segments) == 1:
        return segments[0]
    k, v = (jnp.concatenate(arrays, axis=1) for arrays in zip(*segments, strict=True))
    return KV(k, v)
