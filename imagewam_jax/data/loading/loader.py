"""The training stream: endless, globally shuffled, mixed, sharded over hosts, exactly resumable.

Each dataset is one permutation of its start frames per epoch, epoch after epoch; a mixture takes
from the datasets in a fixed pattern that keeps their shares at every moment. The n-th sample of the
stream carries index n. Global batch k is samples k*G .. (k+1)*G - 1, of which each host reads the
rows that its devices hold, so every number of hosts sees the same global batches.
"""

import collections
import logging
import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import google_crc32c
import grain
import numpy as np
from jaxtyping import Int, Int64, UInt8, UInt32

from imagewam_jax.data.loading.samples import (
    Batch,
    SampleReader,
    augmentation_seeds,
    empty_batch,
    images_shape,
)
from imagewam_jax.errors import BadFrameError, DataError

_LOG = logging.getLogger(__name__)


class BadFrames:
    """Counts the distinct bad frames that a stream met. Safe to use from threads.

    The count does not belong to the stream's state: after a resume it starts anew.
    """

    def __init__(self, share: float, frames: int):
        """share: the share of all `frames` that may be bad. DataError: it is not in 0 to 1."""
        if not 0 <= share <= 1:
            raise DataError(f"the share of bad frames is {share}, expected 0 to 1")
        self._limit, self._share, self._frames = int(share * frames), share, frames
        self._met: set[str] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._met)

    def count(self, error: BadFrameError) -> None:
        """Logs and counts a frame that was not met before. DataError: it is one too many."""
        with self._lock:
            if str(error) in self._met:
                return
            self._met.add(str(error))
        _LOG.warning("%s; the next sample of its dataset is taken instead", error)
        if len(self._met) > self._limit:
            raise DataError(
                f"{len(self._met)} bad frames among {self._frames}, more than the allowed share of "
                f"{self._share:g} (data.bad_frames), the last one: {error}; see all of them with: "
                "imagewam data check DIRECTORY"
            ) from error


# libjpeg-turbo writes rows that start at a multiple of 32 bytes past the cache, which takes 4 to
# 14 % longer.
_ALIGNMENT, _OFFSET = 64, 16


class ImageBuffers:
    """Hands out arrays of one shape and reuses their memory. Safe to use from threads.

    Memory is free again when nothing refers to the array or to a view of it.
    """

    def __init__(self, shape: tuple[int, ...], keep: int):
        """keep: how many unused arrays stay in memory."""
        self._shape = shape
        self._unused: collections.deque[np.ndarray] = collections.deque(maxlen=keep)

    def take(self) -> UInt8[np.ndarray, "..."]:
        """An array with arbitrary content."""
        try:
            memory = self._unused.pop()
        except IndexError:
            memory = _new_memory(self._shape)
        return np.asarray(_Loan(memory, self._unused))


class _Loan:
    """The owner of the memory that an array and all its views refer to."""

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


# The fingerprint of a stream covers the order of this many of its first samples.
_ORDER_PROBE = 64


class Source(NamedTuple):
    """One dataset of the stream.

    share: its share of all samples.
    identity: what decides its samples besides the reader's shapes; a part of the fingerprint.
    """

    reader: SampleReader
    start_frames: Int64[np.ndarray, " samples"]
    share: float
    identity: dict[str, Any]


class TrainIterator:
    """Endless iterator over this host's part of the training stream, with exact resume.

    rows: the rows of every global batch that this host reads; all by default. Batches are those of
    `samples.empty_batch` plus `index` int64 [b], the sample's place in the global stream, and
    `aug_seed` uint32 [b]. Threads read whole batches ahead.

    A sample whose images cannot be read is replaced by the sample at the dataset's next start
    frame, counted in `bad_frames` and logged; more bad frames than allowed stop the run.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        global_batch: int,
        seed: int,
        rows: Int64[np.ndarray, " b"] | None = None,
        num_threads: int = 4,
        prefetch: int = 8,
        bad_share: float = 0.0,
    ):
        """num_threads: batches read at a time. prefetch: batches held ready. bad_share: the share
        of the frames that may be bad."""
        if global_batch < 1:
            raise DataError(f"a global batch of {global_batch} samples")
        rows = np.arange(global_batch) if rows is None else rows
        if not len(rows) or rows.min() < 0 or rows.max() >= global_batch:
            raise DataError(f"rows {rows.tolist()} of a global batch of {global_batch}")
        for source in sources:
            if not len(source.start_frames):
                raise DataError(f"{source.reader.dataset.name}: no start frames to iterate over")
        sample = sources[0].reader.sample
        # As many as there can be batches in flight.
        buffers = ImageBuffers(images_shape(len(rows), sample), keep=num_threads + prefetch + 2)
        self._reader = _MixedReader(sources, buffers)
        self.bad_frames = BadFrames(bad_share, sum(len(s.start_frames) for s in sources))
        order = _order(sources, seed)
        self._fingerprint = _fingerprint(sources, order, global_batch, seed)

        def read(batch_number: int, _: int) -> Batch:
            index = batch_number * global_batch + rows
            seeds = augmentation_seeds(seed, index)
            # Positions of these rows alone, as each takes 20 to 40 microseconds of Python.
            positions = np.array([order[n] for n in index.tolist()], np.int64)
            batch = self._reader.read(positions, seeds, self.bad_frames)
            return batch | {"index": index, "aug_seed": seeds}

        batches = grain.MapDataset.range(1).repeat(None).map_with_index(read)
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
        """The next global batch and the stream's fingerprint, as JSON; equal on every host."""
        return {"next_batch": self._next_batch, "fingerprint": self._fingerprint}

    def set_state(self, state: dict) -> None:
        """Continues exactly after the batches that were taken before `get_state`.

        Raises DataError, naming what differs, when the state belongs to another stream.
        """
        saved, here = state["fingerprint"], self._fingerprint
        differing = sorted(k for k in saved.keys() | here.keys() if saved.get(k) != here.get(k))
        if differing:
            changes = ", ".join(f"{k}: {saved.get(k)!r} -> {here.get(k)!r}" for k in differing)
            raise DataError(f"cannot resume the data stream, it has changed ({changes})")
        self._next_batch = state["next_batch"]
        self._batches.set_state({"next_index": self._next_batch})

    def close(self) -> None:
        """Stops the reading threads. The readers stay open."""
        self._batches.close()


class _MixedReader:
    """Reads batches of samples of several datasets.

    Positions number the start frames of all datasets, dataset after dataset.
    """

    def __init__(self, sources: Sequence[Source], buffers: ImageBuffers):
        self._sources, self._buffers = sources, buffers
        self._starts = _starts(sources)

    def read(
        self,
        positions: Int64[np.ndarray, " b"],
        seeds: UInt32[np.ndarray, " b"],
        bad_frames: BadFrames,
    ) -> Batch:
        sample = self._sources[0].reader.sample
        batch = empty_batch(len(positions), sample, self._buffers.take())
        source_of_row = np.searchsorted(self._starts, positions, "right") - 1
        for number, (source, start) in enumerate(zip(self._sources, self._starts, strict=False)):
            rows = np.flatnonzero(source_of_row == number)
            places = positions[rows] - start
            for _ in range(len(source.start_frames)):
                bad = source.reader.fill(batch, rows, source.start_frames[places], seeds[rows])
                for image in bad:
                    bad_frames.count(image.error)
                again = np.isin(rows, [image.row for image in bad])
                rows, places = rows[again], (places[again] + 1) % len(source.start_frames)
                if not len(rows):
                    break
            else:
                raise DataError(f"{source.reader.dataset.name}: no sample has readable images")
        return batch


def _starts(sources: Sequence[Source]) -> Int64[np.ndarray, " starts"]:
    """The position of each source's first start frame, and one behind all."""
    return np.concatenate([[0], np.cumsum([len(s.start_frames) for s in sources])])


def _order(sources: Sequence[Source], seed: int) -> grain.MapDataset:
    """The positions of the endless stream, in order."""
    starts = _starts(sources).tolist()
    shuffled = [
        # With one seed for all, two datasets of equal size would be shuffled the same way.
        grain.MapDataset.range(start, start + len(source.start_frames))
        .seed(seed + number)
        .shuffle()
        .repeat(None)
        for number, (source, start) in enumerate(zip(sources, starts, strict=False))
    ]
    if len(shuffled) == 1:
        return shuffled[0]
    return grain.MapDataset.mix(shuffled, [source.share for source in sources])


def _fingerprint(
    sources: Sequence[Source], order: grain.MapDataset, global_batch: int, seed: int
) -> dict:
    """What decides which samples the stream holds and in which order; no path, no host count.

    Its keys stay as they are: a resumed run compares them with those of its checkpoint.
    """
    total = sum(len(source.start_frames) for source in sources)
    first = np.array([order[n] for n in range(min(_ORDER_PROBE, total))], np.int64)
    return {
        "datasets": [
            {
                **source.identity,
                "share": source.share,
                "anchors": f"{len(source.start_frames)}:{checksum(source.start_frames)}",
            }
            for source in sources
        ],
        "sample": sources[0].reader.identity(),
        "order": checksum(first),
        "global_batch": global_batch,
        "seed": seed,
    }


def checksum(numbers: Int[np.ndarray, " n"]) -> str:
    """A short text that differs for other numbers, or for another order of them."""
    return f"{google_crc32c.value(numbers.astype('<i8').tobytes()):08x}"
