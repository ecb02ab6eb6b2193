"""Reads a tree of a checkpoint layer by layer, so that it can be larger than memory."""

import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorstore as ts

from imagewam_jax.checkpoints.checksums import ReadChecksums
from imagewam_jax.checkpoints.store import Checkpoints, check_arrays
from imagewam_jax.errors import CheckpointError
from imagewam_jax.models.parameters import flatten
from imagewam_jax.storage.objects import kvstore_spec

# A chunk on disk can span layers, as in the checkpoints of training runs, and each read decodes the
# whole chunk. So many bytes of such an array are read as one block and kept for its next layers.
BLOCK_BYTES = 256 * 2**20
# The most bytes that all blocks may have. A foreign tensor is made of at most five arrays.
KEPT_BYTES = 5 * BLOCK_BYTES
# OCDBT, in which Orbax packs all arrays of a tree, looks up every read in an index: this caches it.
CONTEXT = {"cache_pool#index": {"total_bytes_limit": 10**8}}


class SavedTree:
    """The arrays of one tree of a step; `abstract` has their shapes and dtypes.

    Calling it with a dotted path and a layer reads that layer; layer None reads the whole array. It
    can be called from several threads. An array that has been read whole, or with all of its
    layers, is compared with its checksum.
    """

    def __init__(self, checkpoints: Checkpoints, step: int, tree: str):
        """CheckpointError: the step has no such tree. Unreadable: its description is damaged."""
        self.abstract: dict[str, Any] = checkpoints.abstract(step, tree)
        self._folder = checkpoints.directory / str(step) / tree
        self._stored = json.loads((self._folder / "_METADATA").read_text())
        sums = checkpoints.checksums(step).get(tree, {})
        self._checksums = ReadChecksums(sums, str(self._folder))
        self._context = ts.Context(CONTEXT)
        self._lock = threading.Lock()  # guards the next two
        self._arrays: dict[str, ts.TensorStore] = {}
        self._blocks: dict[str, tuple[int, np.ndarray]] = {}  # path: (first layer, layers)

    def check(self, like: Mapping[str, Any], below: str = "") -> None:
        """CheckpointError unless the arrays below a dotted path are those of `like`."""
        prefix, saved = f"{below}." if below else "", flatten(self.abstract)
        check_arrays(
            {f"{prefix}{path}": leaf for path, leaf in flatten(like).items()},
            {path: leaf for path, leaf in saved.items() if path.startswith(prefix)},
            str(self._folder),
        )

    def __call__(self, path: str, layer: int | None) -> np.ndarray:
        """CheckpointError: what is on disk cannot be read. Unreadable: it is not what was saved."""
        with self._lock:
            if path not in self._arrays:
                self._arrays[path] = self._open(path)
            array = self._arrays[path]
        count = 1 if layer is None else _layers_at_once(array)
        try:
            if count == 1:
                found = (array if layer is None else array[layer]).read().result()
            else:
                with self._lock:  # two threads that want one block read it once
                    found = self._layer(path, array, layer, count)
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self._folder}: {path} cannot be read: {error}") from error
        self._checksums.add(path, layer, found, array.shape[0] if array.shape else 1)
        return found

    def _layer(self, path: str, array: ts.TensorStore, layer: int, count: int) -> np.ndarray:
        """A layer, from a block of `count` layers that is read as a whole and kept."""
        start, block = self._blocks.get(path, (0, np.empty(0)))
        if not start <= layer < start + len(block):
            start = layer - layer % count
            block = array[start : min(start + count, array.shape[0])].read().result()
            self._blocks.pop(path, None)
            self._blocks[path] = start, block
            while sum(b.nbytes for _, b in self._blocks.values()) > KEPT_BYTES:
                del self._blocks[next(iter(self._blocks))]
        return block[layer - start]

    def _open(self, path: str) -> ts.TensorStore:
        files = kvstore_spec(self._folder)
        packed = {"driver": "ocdbt", "base": files, "path": path, "cache_pool": "cache_pool#index"}
        apart = kvstore_spec(self._folder / path)
        spec = {
            "driver": "zarr3" if self._stored["use_zarr3"] else "zarr",
            "kvstore": packed if self._stored["use_ocdbt"] else apart,
            "fill_missing_data_reads": False,  # a lost file is an error, not zeros
        }
        try:
            return ts.open(spec, read=True, context=self._context).result()
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self._folder}: {path} cannot be read: {error}") from error


def _layers_at_once(array: ts.TensorStore) -> int:
    if array.chunk_layout.read_chunk.shape[0] == 1:
        return 1
    layer_bytes = int(np.prod(array.shape[1:])) * array.dtype.numpy_dtype.itemsize
    return max(1, BLOCK_BYTES // max(1, layer_bytes))
