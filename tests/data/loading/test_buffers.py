"""Memory of images that is used again, and never while somebody can still see it."""

import gc

import jax
import numpy as np
import pytest

from imagewam_jax.data.loading import loader as buffers
from imagewam_jax.data.loading.loader import ImageBuffers

SHAPE = (4, 2, 2, 32, 48, 3)


def address(array):
    return array.__array_interface__["data"][0]


def test_memory_is_used_again_when_its_last_view_has_gone():
    pool = ImageBuffers(SHAPE, keep=4)
    first = pool.take()
    assert first.shape == SHAPE and first.dtype == np.uint8 and first.flags.writeable
    where, view = address(first), first[1:, 0][::2, 1]
    assert view.base is not None and np.shares_memory(view, first)
    del first
    gc.collect()
    second = pool.take()
    assert address(second) != where
    second[...] = 2
    view[...] = 1
    assert (second == 2).all()
    del view
    assert address(pool.take()) == where


def test_no_more_is_kept_than_asked_for():
    pool = ImageBuffers(SHAPE, keep=2)
    held = [pool.take() for _ in range(5)]
    made = [address(array) for array in held]
    while held:
        del held[0]
    # The last two that were given back.
    assert {address(array) for array in [pool.take(), pool.take()]} == set(made[3:])


@pytest.mark.parametrize("offset", [16, 0])
def test_what_was_put_on_the_device_stays(monkeypatch, offset):
    """At an offset of 0 the CPU backend of JAX uses the memory itself, at 16 a copy."""
    monkeypatch.setattr(buffers, "_OFFSET", offset)
    pool = ImageBuffers(SHAPE, keep=4)
    on_device = []
    for number in range(12):
        images = pool.take()
        images[...] = number
        on_device.append(jax.device_put(images))
        del images
    for number, array in enumerate(on_device):
        assert (np.asarray(array) == number).all()


def test_rows_do_not_start_where_decoding_is_slow():
    pool = ImageBuffers((2, 1, 2, 16, 32, 3), keep=4)
    assert all(address(array) % 32 == 16 for array in [pool.take() for _ in range(8)])
