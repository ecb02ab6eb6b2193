"""Images on the accelerator: range and camera layouts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.images import (
    ImageSpec,
    mosaic,
    prepare_images,
    to_model_range,
    to_unit_range,
)


def test_the_range_is_that_of_the_official_path():
    """XLA may multiply all 256 values by a rounded 1/255, which costs one float32 rounding."""
    values = np.arange(256, dtype=np.uint8)
    expected = (values.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    found = jax.jit(lambda x: to_model_range(to_unit_range(x)))(jnp.asarray(values))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.2e-7)


def camera(height, width, value):
    return jnp.full((2, height, width, 3), value, jnp.float32)


@pytest.mark.parametrize(
    ("layout", "whole", "head", "wrist"),
    [
        ("compact_288x256", (288, 256), (192, 256), (96, 128)),
        ("legacy_384x320", (384, 320), (256, 320), (128, 160)),
    ],
)
def test_layouts_put_each_camera_in_its_place(layout, whole, head, wrist):
    np.testing.assert_array_equal(mosaic("single", [camera(4, 6, 1)]), camera(4, 6, 1))
    libero = mosaic("row", [camera(224, 224, 1), camera(224, 224, 2)])
    assert libero.shape == (2, 224, 448, 3)
    assert (libero[:, :, :224] == 1).all() and (libero[:, :, 224:] == 2).all()
    robotwin = mosaic(layout, [camera(240, 320, value) for value in (1, 2, 3)])
    assert robotwin.shape == (2, *whole, 3) and head[1] == 2 * wrist[1] == whole[1]
    np.testing.assert_allclose(robotwin[:, : head[0]], 1, rtol=1e-6)
    np.testing.assert_allclose(robotwin[:, head[0] :, : wrist[1]], 2, rtol=1e-6)
    np.testing.assert_allclose(robotwin[:, head[0] :, wrist[1] :], 3, rtol=1e-6)


@functools.partial(jax.jit, static_argnames="spec")
def prepared(images, sizes, seeds, spec):
    return prepare_images(images, sizes, spec, seeds)


def random_images(*shape):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3)).astype(np.uint8)


def test_images_of_the_right_size_keep_their_pixels():
    images = random_images(3, 2, 2, 4, 6)
    found = prepared(images, None, None, ImageSpec("row", (4, 6)))
    assert found.shape == (3, 2, 4, 12, 3) and found.dtype == jnp.float32
    expected = np.concatenate([images[:, 0], images[:, 1]], axis=3) / 127.5 - 1
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # With their sizes too.
    sizes = np.full((3, 2, 2), (4, 6), np.int32)
    np.testing.assert_allclose(
        prepared(images, sizes, None, ImageSpec("row", (4, 6))), expected, atol=1e-6
    )
    references = prepared(images, None, None, ImageSpec("references", (4, 6)))
    np.testing.assert_allclose(references, images.swapaxes(1, 2) / 127.5 - 1, atol=1e-6)


def test_other_sizes_are_those_of_pytorch():
    """Each image is resized as if it were alone, whatever lies beside it in the buffer."""
    torch = pytest.importorskip("torch")
    images = random_images(2, 2, 1, 40, 50)
    sizes = np.array([[[40, 50], [31, 17]], [[20, 50], [40, 33]]], np.int32)
    found = prepared(images, sizes, None, ImageSpec("references", (16, 24)))
    for sample in range(2):
        for number in range(2):
            rows, columns = sizes[sample, number]
            alone = torch.from_numpy(images[sample, number, 0, :rows, :columns].copy())
            expected = torch.nn.functional.interpolate(
                alone.permute(2, 0, 1)[None] / 255.0, (16, 24), mode="bilinear", antialias=True
            )
            expected = expected[0].permute(1, 2, 0).numpy() * 2 - 1
            np.testing.assert_allclose(found[sample, 0, number], expected, atol=2e-5)


def test_a_camera_in_a_letterbox():
    images = np.full((1, 2, 1, 20, 40, 3), 255, np.uint8)
    found = prepared(images, None, None, ImageSpec("references", (30, 30), letterbox=(1,)))
    np.testing.assert_allclose(found[0, 0, 0], 1, atol=1e-6)
    bright = np.asarray(found[0, 0, 1] > 0).all((1, 2))
    # 30 columns by 15 rows, with more of an odd remainder below.
    assert bright.tolist() == [False] * 7 + [True] * 15 + [False] * 8


def test_augmentation_is_of_the_seed_and_the_same_for_both_moments():
    images = random_images(40, 1, 1, 12, 16).repeat(2, axis=2)  # target as the current image
    seeds = np.arange(40, dtype=np.uint32)
    spec = ImageSpec("single", (12, 16), "libero")
    plain = prepared(images, None, None, spec)
    found = prepared(images, None, seeds, spec)
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    changed = np.abs(found - plain).max((1, 2, 3, 4)) > 1e-3
    assert 0.4 < changed.mean() < 0.9  # 0.65
    assert np.abs(found).max() < 1 + 1e-6
    half = prepared(images[20:], None, seeds[20:], spec)
    np.testing.assert_array_equal(half, found[20:])
    assert (prepared(images, None, seeds + 1, spec) != found).any()


@pytest.mark.parametrize(
    ("layout", "cameras", "complaint"),
    [
        ("single", [camera(4, 4, 0)] * 2, "'single': 2 cameras, expected 1"),
        ("compact_288x256", [camera(4, 4, 0)], "1 cameras, expected 3"),
    ],
)
def test_cameras_that_do_not_fit_the_layout(layout, cameras, complaint):
    with pytest.raises(DataError, match=complaint):
        mosaic(layout, cameras)


def test_names_that_are_not_known():
    with pytest.raises(DataError, match=r"no camera layout 'grid', there are \['compact_288x256'"):
        ImageSpec("grid", (4, 4))
    with pytest.raises(DataError, match=r"no augmentation 'much', there are \['', 'libero'"):
        ImageSpec("single", (4, 4), "much")
