"""Orders of samples: an endless, globally shuffled, sharded, resumable one, and a sequential one.

The training stream is one permutation of the anchors per epoch, epoch after epoch. Its n-th sample
carries index n. Global batch k is samples k*G .. (k+1)*G - 1, and host h of N takes every N-th of
them from the h-th, so every number of hosts sees the same global batches.
"""

import dataclasses
from collections.abc import Iterator

import google_crc32c
import grain
import numpy as np
from jaxtyping import Int64

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.samples import Batch, SampleReader, augmentation_seeds

# Samples of the stream whose order is part of the fingerprint.
_ORDER_PROBE = 64


class TrainIterator:
    """Endless iterator over this host's part of the training stream, with exact resume.

    Batches are those of `SampleReader.read` plus `index` int64 [b], the sample's place in the
    global stream, and `aug_seed` uint32 [b]. Whole batches are read ahead by threads.
    """

    def __init__(
        self,
        reader: SampleReader,
        anchors: Int64[np.ndarray, " anchors"],
        *,
        global_batch: int,
        seed: int,
        host: int = 0,
        num_hosts: int = 1,
        num_threads: int = 4,
        prefetch: int = 8,
    ):
        """num_threads batches are read at a time, prefetch batches are held ready."""
        if global_batch < 1 or global_batch % num_hosts:
            raise DataError(
                f"a global batch of {global_batch} does not split over {num_hosts} hosts"
            )
        if not 0 <= host < num_hosts:
            raise DataError(f"host {host} of {num_hosts}")
        if not len(anchors):
            raise DataError(f"{reader.index.name}: no anchors to iterate over")
        _check_widths(reader)
        order = grain.MapDataset.range(len(anchors)).seed(seed).shuffle().repeat(None)
        self._fingerprint = _fingerprint(reader, anchors, order, global_batch, seed)
        rows = np.arange(global_batch // num_hosts)

        def read(batch_number: int, shuffled: np.ndarray) -> Batch:
            index = (batch_number * len(rows) + rows) * num_hosts + host
            seeds = augmentation_seeds(seed, index)
            return reader.read(anchors[shuffled]) | {"index": index, "aug_seed": seeds}

        batches = order[host::num_hosts].batch(len(rows)).map_with_index(read)
        options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
        self._batches = iter(batches.to_iter_dataset(options))
        self._next_batch = 0

    def __iter__(self) -> "TrainIterator":
        return self

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict:
        """JSON-able, the same on every host: the next global batch, and what is iterated."""
        return {"next_batch": self._next_batch, "fingerprint": self._fingerprint}

    def set_state(self, state: dict) -> None:
        """Continues exactly after the batches that were taken before `get_state`.

        Raises DataError, naming what differs, when the state is of another stream.
        """
        saved, here = state["fingerprint"], self._fingerprint
        differing = sorted(k for k in saved.keys() | here.keys() if saved.get(k) != here.get(k))
        if differing:
            changes = ", ".join(f"{k}: {saved.get(k)!r} -> {here.get(k)!r}" for k in differing)
            raise DataError(f"cannot resume the data stream, it has changed ({changes})")
        self._next_batch = state["next_batch"]
        self._batches.set_state({"next_index": self._next_batch})

    def close(self) -> None:
        """Stops the reading threads. The reader stays open."""
        self._batches.close()


def _check_widths(reader: SampleReader) -> None:
    """The configured widths must be those of the data: a wider one is a mistake, not a padding."""
    for what, key, width in (
        ("action_dim", reader.dataset.action_key, reader.sample.action_dim),
        ("state_dim", reader.dataset.state_key, reader.sample.state_dim),
    ):
        found = reader.split.features[key].shape[1]
        if found != width:
            raise DataError(
                f"{reader.index.name}: {key!r} has {found} dimensions, the configured {what} is "
                f"{width}"
            )


def _fingerprint(
    reader: SampleReader,
    anchors: np.ndarray,
    order: grain.MapDataset,
    global_batch: int,
    seed: int,
) -> dict:
    """What decides which samples the stream holds and in which order; no path, no host count."""
    first = np.array([order[n] for n in range(min(_ORDER_PROBE, len(anchors)))], np.int64)
    cameras = dict(reader.dataset.image_keys)
    return {
        "dataset": f"{reader.index.name}/{reader.index.version}",
        "index": reader.index.checksum,
        "split": reader.split.name,
        "camera_keys": [cameras[role] for role in reader.sample.cameras],
        "relative_action_mask": list(reader.dataset.relative_action_mask),
        "sample": {k: _jsonable(v) for k, v in dataclasses.asdict(reader.sample).items()},
        "anchors": f"{len(anchors)}:{google_crc32c.value(anchors.astype('<i8').tobytes()):08x}",
        "order": f"{google_crc32c.value(first.astype('<i8').tobytes()):08x}",
        "global_batch": global_batch,
        "seed": seed,
    }


def _jsonable(value: object) -> object:
    """JSON has no tuples: a state that went through a file must compare equal."""
    return list(value) if isinstance(value, tuple) else value


def evaluation_batches(
    reader: SampleReader, anchors: Int64[np.ndarray, " anchors"], batch_size: int
) -> Iterator[Batch]:
    """Each anchor once, in order; the last batch may be smaller. `index` counts the anchors."""
    for start in range(0, len(anchors), batch_size):
        chosen = anchors[start : start + batch_size]
        index = np.arange(start, start + len(chosen))
        seeds = augmentation_seeds(0, index)
        yield reader.read(chosen) | {"index": index, "aug_seed": seeds}
