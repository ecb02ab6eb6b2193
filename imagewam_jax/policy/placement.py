"""Where a policy computes: on one device, or divided over a mesh.

On a mesh a batch is divided over `data` and `fsdp`, and what is computed for each row of it over
`tensor` and `context` (`models.partitioning`). Several hosts call the same functions in the same
order, each with its own rows, as many as the others; hosts whose devices share rows call them with
the same. So it is always right that all hosts give the same whole batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int64, Shaped

from imagewam_jax.models.sharding import batch_parts, batch_sharding, rows_here


class Placement:
    """Puts batches where a policy computes, and fetches what it makes of them."""

    def __init__(self, mesh: Mesh | None):
        """None is one device: arrays are taken as they are given."""
        self._mesh = mesh
        if mesh is not None:
            self._sharding, self._parts = batch_sharding(mesh), batch_parts(mesh)
            self._parts_here = len(rows_here(mesh, self._parts))
            self._by_rows = jax.jit(lambda x: x, out_shardings=self._sharding)

    def whole_batch(self, count: int) -> int:
        """The smallest number of rows, of all hosts together, from `count` that divides evenly."""
        return count if self._mesh is None else -(-count // self._parts) * self._parts

    def rows_here(self, whole_batch: int) -> Int64[np.ndarray, " rows"]:
        """The rows of a batch that divides evenly which this host gives."""
        return np.arange(whole_batch) if self._mesh is None else rows_here(self._mesh, whole_batch)

    def run(
        self, function: Callable[..., Shaped[Array, "b ..."]], *batch: Any
    ) -> Shaped[np.ndarray, "b ..."]:
        """What a compiled function makes of trees of arrays [b, ...], on this host.

        Where the rows cannot be divided evenly, the last one is computed several times.
        """
        if self._mesh is None:
            return np.asarray(function(*batch))
        (count,) = {len(x) for x in jax.tree.leaves(batch)}
        missing = -count % self._parts_here
        every = (count + missing) // self._parts_here * self._parts

        def put(x: Any) -> Array:
            x = np.asarray(x)
            if missing:
                x = np.concatenate([x, np.repeat(x[-1:], missing, 0)])
            shape = (every, *x.shape[1:])
            return jax.make_array_from_process_local_data(self._sharding, x, shape)

        with jax.set_mesh(self._mesh):
            result = self._by_rows(function(*jax.tree.map(put, batch)))
        return _rows_of_this_host(result)[:count]


def _rows_of_this_host(x: Shaped[Array, "b ..."]) -> Shaped[np.ndarray, "rows ..."]:
    """The rows of an array that this host's devices hold, in order."""
    parts = {shard.index[0].start or 0: shard for shard in x.addressable_shards}
    return np.concatenate([np.asarray(parts[start].data) for start in sorted(parts)])
