"""What a run reads: its training stream, its held-out batches, and both on the devices."""

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import Int64

from imagewam_jax.data.datasets import Data, shared_splits
from imagewam_jax.data.loading.loader import Source, TrainIterator
from imagewam_jax.data.loading.samples import Batch

_LOG = logging.getLogger(__name__)

# The arrays of a batch that the train step takes; the others say where samples come from.
MODEL_KEYS = (
    "images",
    "aug_seed",
    "text_id",
    "proprio",
    "actions",
    "action_is_pad",
    "action_dim_mask",
    "target_is_pad",
    "dataset_id",
)


def model_keys(data: Data) -> tuple[str, ...]:
    """The arrays of a batch that the train step takes; sizes only where images differ in them."""
    return MODEL_KEYS if data.fills_buffer else (*MODEL_KEYS, "image_size")


def train_iterator(
    config: Mapping[str, Any], sources: Sequence[Source], rows: Int64[np.ndarray, " rows"]
) -> TrainIterator:
    """The training stream of this host, which reads `rows` of each global batch."""
    section = config["data"]
    return TrainIterator(
        sources,
        global_batch=config["train"]["batch_size"],
        seed=config["seed"],
        rows=rows,
        num_threads=section["threads"],
        prefetch=section["prefetch"],
        bad_share=section["bad_frames"],
    )


def validation_batches(
    config: Mapping[str, Any], data: Data, rows: Int64[np.ndarray, " rows"]
) -> list[dict[str, Any]]:
    """Full batches of held-out samples, mixed as in training; this host reads `rows` of each."""
    train = config["train"]
    if not validates(config):
        return []
    for shared in shared_splits(data.datasets, config["data"]):
        _LOG.warning("%s", shared)
    count = max(1, train["validation_samples"] // train["batch_size"])
    stream = validation_stream(config, data.sources(config["data"]["eval_split"]), rows)
    batches = [next(stream) for _ in range(count)]
    stream.close()
    return batches


def validates(config: Mapping[str, Any]) -> bool:
    """Whether a run looks at held-out samples."""
    return bool(config["train"]["validate_every"] and config["train"]["validation_samples"])


def validation_stream(
    config: Mapping[str, Any], sources: Sequence[Source], rows: Int64[np.ndarray, " rows"]
) -> TrainIterator:
    """The stream of held-out samples. DataError: there are none."""
    size, share = config["train"]["batch_size"], config["data"]["bad_frames"]
    return TrainIterator(sources, global_batch=size, rows=rows, seed=0, bad_share=share)


def put_batch(
    batch: Batch, keys: Sequence[str], sharding: NamedSharding, global_batch: int
) -> dict[str, jax.Array]:
    """Put these arrays of a batch on the devices, as global arrays.

    This host has the rows of the global batch that its devices hold (`sharding.batch_rows`).
    """
    return {
        key: jax.make_array_from_process_local_data(
            sharding, batch[key], (global_batch, *batch[key].shape[1:])
        )
        for key in keys
    }


class DevicePrefetch:
    """An iterator over a stream whose next `ahead` batches a thread has put on the devices.

    `put` puts one batch there. The state counts the batches that were taken, not those read ahead.
    """

    def __init__(
        self,
        batches: TrainIterator,
        put: Callable[[Batch], Mapping[str, jax.Array]],
        *,
        ahead: int = 2,
    ):
        self._batches, self._put = batches, put
        self._next_batch = batches.get_state()["next_batch"]
        self._ready: queue.Queue[Mapping[str, jax.Array] | BaseException] = queue.Queue(ahead)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="device batches", daemon=True)
        self._thread.start()

    def __iter__(self) -> "DevicePrefetch":
        return self

    def __next__(self) -> Mapping[str, jax.Array]:
        """The next batch; an error that reading it met is raised here, and at every later call."""
        found = self._ready.get()
        if isinstance(found, BaseException):
            self._ready.put(found)
            raise found
        self._next_batch += 1
        return found

    def get_state(self) -> dict[str, Any]:
        """See `TrainIterator.get_state`."""
        return self._batches.get_state() | {"next_batch": self._next_batch}

    def close(self) -> None:
        """Stop the thread of this iterator, and then the threads of the stream."""
        self._stopping.set()
        while self._thread.is_alive():
            with self._ready.mutex:
                self._ready.queue.clear()
                self._ready.not_full.notify()
            self._thread.join(0.01)
        self._batches.close()

    def _fill(self) -> None:
        try:
            while not self._stopping.is_set():
                # Complete when it is taken, so that waiting for data is seen where it happens.
                self._ready.put(jax.block_until_ready(self._put(next(self._batches))))
        except BaseException as error:
            self._ready.put(error)
