"""Images on the accelerator: range and camera layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.data.device import mosaic, prepare_images, to_model_range
from imagewam_jax.data.errors import DataError


def test_the_range_is_that_of_the_official_path():
    """All 256 values; XLA may multiply by a rounded 1/255, which costs one float32 rounding."""
    values = np.arange(256, dtype=np.uint8)
    expected = (values.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    found = jax.jit(to_model_range)(jnp.asarray(values))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.2e-7)


def camera(height, width, value):
    return jnp.full((2, height, width, 3), value, jnp.uint8)


def test_layouts_put_each_camera_in_its_place():
    np.testing.assert_array_equal(mosaic("single", [camera(4, 6, 1)]), camera(4, 6, 1))
    libero = mosaic("row", [camera(224, 224, 1), camera(224, 224, 2)])
    assert libero.shape == (2, 224, 448, 3)
    assert (libero[:, :, :224] == 1).all() and (libero[:, :, 224:] == 2).all()
    robotwin = mosaic(
        "head_over_wrists", [camera(192, 256, 1), camera(96, 128, 2), camera(96, 128, 3)]
    )
    assert robotwin.shape == (2, 288, 256, 3)
    assert (robotwin[:, :192] == 1).all()
    assert (robotwin[:, 192:, :128] == 2).all() and (robotwin[:, 192:, 128:] == 3).all()


def test_a_batch_becomes_current_and_target_mosaics():
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 2, 4, 6, 3)).astype(np.uint8)
    found = jax.jit(prepare_images, static_argnames="layout")(images, layout="row")
    assert found.shape == (3, 2, 4, 12, 3) and found.dtype == jnp.float32
    expected = np.concatenate([images[:, 0], images[:, 1]], axis=3) / 127.5 - 1
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    "layout, cameras, complaint",
    [
        ("grid", [camera(4, 4, 0)], r"no camera layout 'grid', there are \['head_over_wrists'"),
        ("single", [camera(4, 4, 0)] * 2, "'single': 2 cameras, expected 1"),
        ("row", [camera(4, 4, 0), camera(6, 4, 0)], r"heights \[4, 6\], expected equal"),
        ("head_over_wrists", [camera(4, 4, 0)] * 3, "expected two equal wrist images"),
        ("head_over_wrists", [camera(4, 4, 0)], "1 cameras, expected 3"),
    ],
)
def test_cameras_that_do_not_fit_the_layout(layout, cameras, complaint):
    with pytest.raises(DataError, match=complaint):
        mosaic(layout, cameras)
