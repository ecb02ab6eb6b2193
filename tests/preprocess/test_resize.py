"""Resizing, against PyTorch's own kernel and numbers worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.preprocess.resize import letterbox, letterbox_region, resize

SIZES = [
    ((256, 256), (224, 224)),
    ((480, 640), (240, 320)),
    ((240, 320), (192, 256)),
    ((180, 320), (240, 320)),
    ((37, 53), (224, 31)),
    ((1, 5), (3, 1)),
]
jitted = jax.jit(resize, static_argnames="size")
jitted_letterbox = jax.jit(letterbox, static_argnames="size")


def noise(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def torch_resize(images, size, dtype="float64"):
    """PyTorch's result, by default in float64: in float32 its weights alone are off by 1e-5."""
    torch = pytest.importorskip("torch")
    planes = torch.from_numpy(np.moveaxis(images, -1, -3).astype(dtype))
    found = torch.nn.functional.interpolate(
        planes, size=size, mode="bilinear", antialias=True, align_corners=False
    )
    return np.moveaxis(found.numpy(), -3, -1)


@pytest.mark.parametrize(("source", "size"), SIZES)
def test_the_numbers_are_those_of_torch(source, size):
    images = noise(2, *source, 3)
    found = jitted(images, size)
    assert found.shape == (2, *size, 3) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, torch_resize(images, size), rtol=0, atol=1e-6)
    single = torch_resize(images, size, "float32")
    np.testing.assert_allclose(found, single, rtol=0, atol=3e-5)


def test_two_steps_of_the_bimanual_set():
    images = noise(1, 480, 640, 3)
    expected = torch_resize(torch_resize(images, (240, 320)), (96, 128))
    found = jitted(jitted(images, (240, 320)), (96, 128))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_halving_by_hand():
    """Weights are 1, 3, 3 and 1 eighths; at an edge the outer one is missing."""
    row = jnp.asarray([0.0, 7.0, 14.0, 70.0])[None, :, None]
    expected = [(3 * 0 + 3 * 7 + 14) / 7, (7 + 3 * 14 + 3 * 70) / 7]
    np.testing.assert_allclose(jitted(row, (1, 2))[0, :, 0], expected, rtol=1e-6)


def test_enlarging_by_hand():
    row = jnp.asarray([0.0, 8.0])[None, :, None]
    np.testing.assert_array_equal(jitted(row, (1, 4))[0, :, 0], [0, 2, 6, 8])


def in_one_buffer(images, height, width):
    buffer = np.full((len(images), height, width, 3), 1e6, np.float32)  # what lies beside them
    for place, image in zip(buffer, images, strict=True):
        place[: image.shape[0], : image.shape[1]] = image
    return buffer, np.asarray([image.shape[:2] for image in images], np.int32)


TRUE_SIZES = [(256, 256), (180, 320), (224, 224), (97, 41), (1, 1)]


def test_an_image_in_a_larger_buffer_is_resized_as_if_alone():
    images = [noise(*size, 3) for size in TRUE_SIZES]
    buffer, true_size = in_one_buffer(images, 256, 320)
    found = jitted(buffer, (224, 224), true_size)
    for image, result in zip(images, found, strict=True):
        np.testing.assert_allclose(result, jitted(image, (224, 224)), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(found[2], images[2])


def test_one_true_size_for_all_axes_in_front():
    images = noise(2, 3, 20, 24, 3)
    true_size = np.asarray([[[20, 24]], [[11, 13]]], np.int32)
    found = jitted(images, (8, 8), true_size)
    np.testing.assert_allclose(found[0], jitted(images[0], (8, 8)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[1], jitted(images[1, :, :11, :13], (8, 8)), rtol=0, atol=1e-6)


def test_an_image_without_pixels_is_black():
    found = jitted(np.ones((1, 8, 8, 3), np.float32), (4, 4), np.zeros((1, 2), np.int32))
    np.testing.assert_array_equal(found, 0)
    found = jitted_letterbox(np.ones((1, 8, 8, 3), np.float32), (4, 4), np.zeros((1, 2), np.int32))
    np.testing.assert_array_equal(found, 0)


def test_where_a_letterboxed_image_lies():
    """Expected places are worked by hand, for a frame of 240 x 320."""
    sizes = np.asarray([[480, 640], [256, 256], [180, 320], [7, 2], [3, 1000], [240, 317]])
    found = letterbox_region((240, 320), jnp.asarray(sizes, jnp.int32))
    # 240 * 2 / 7 = 68.57 -> 69, 251 left: 125 at the left, 126 at the right.
    np.testing.assert_array_equal(
        found.size, [[240, 320], [240, 240], [180, 320], [240, 69], [1, 320], [240, 317]]
    )
    np.testing.assert_array_equal(
        found.start, [[0, 0], [0, 40], [30, 0], [0, 125], [119, 0], [0, 1]]
    )


@pytest.mark.parametrize("size", [(256, 256), (100, 31), (97, 400)])
def test_a_letterbox_is_the_image_alone_and_zeros(size):
    image = noise(*size, 3)
    factor = min(240 / size[0], 320 / size[1])
    inner = (round(size[0] * factor), round(size[1] * factor))
    top, left = (240 - inner[0]) // 2, (320 - inner[1]) // 2
    expected = np.zeros((240, 320, 3), np.float32)
    expected[top : top + inner[0], left : left + inner[1]] = torch_resize(image[None], inner)[0]
    np.testing.assert_allclose(jitted_letterbox(image, (240, 320)), expected, rtol=0, atol=1e-6)
    buffer, true_size = in_one_buffer([image], 256, 400)
    found = jitted_letterbox(buffer, (240, 320), true_size)[0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_ones_stay_ones():
    """Every image of ones stays one: the weights of an output add up, padding or not."""
    true_size = np.asarray([[9, 200]], np.int32)
    np.testing.assert_allclose(
        jitted(np.ones((1, 16, 256, 1), np.float32), (33, 17), true_size), 1, rtol=0, atol=1e-6
    )
