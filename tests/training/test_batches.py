"""Batches that a thread puts on the device."""

import threading

import jax
import numpy as np
import pytest

from imagewam_jax.errors import DataError
from imagewam_jax.training.batches import DevicePrefetch


def x_alone(batch):
    return jax.device_put({"x": batch["x"]})


class Stream:
    """Counts; can go wrong at a number, and can be held back."""

    def __init__(self, bad=None, first=0):
        self.number, self.bad, self.closed = first, bad, False
        self.go = threading.Event()
        self.go.set()

    def __next__(self):
        self.go.wait()
        if self.number == self.bad:
            raise DataError("a bad batch")
        self.number += 1
        return {"x": np.full(3, self.number - 1), "y": np.zeros(1)}

    def get_state(self):
        return {"next_batch": self.number, "fingerprint": "same"}

    def close(self):
        self.closed = True


def test_batches_in_order_with_the_state_of_those_that_were_taken():
    stream = Stream(first=7)
    batches = DevicePrefetch(stream, x_alone, ahead=3)
    for number in range(7, 30):
        assert batches.get_state() == {"next_batch": number, "fingerprint": "same"}
        batch = next(batches)
        assert batch.keys() == {"x"} and isinstance(batch["x"], jax.Array)
        np.testing.assert_array_equal(batch["x"], np.full(3, number))
    # Three wait, and one more is in the thread's hands.
    assert stream.number <= 30 + 4
    batches.close()
    assert stream.closed and not batches._thread.is_alive()


def test_an_error_comes_in_its_turn_and_stays():
    batches = DevicePrefetch(Stream(bad=2), x_alone)
    assert [int(next(batches)["x"][0]) for _ in range(2)] == [0, 1]
    for _ in range(3):
        with pytest.raises(DataError, match="a bad batch"):
            next(batches)
    assert batches.get_state()["next_batch"] == 2
    batches.close()


def test_it_can_be_closed_while_its_thread_waits():
    for stream in (Stream(), Stream(bad=0)):
        batches = DevicePrefetch(stream, x_alone, ahead=1)
        batches.close()
        assert stream.closed
