"""The official augmentation: each operation against another implementation, and what is drawn."""

import colorsys
import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.errors import DataError
from imagewam_jax.preprocess import augment as module
from imagewam_jax.preprocess.augment import AUGMENTATIONS, Augmentation, augment, draw_sample
from imagewam_jax.preprocess.resize import Region

HEIGHT, WIDTH = 13, 18


@pytest.fixture(scope="module")
def images():
    """Two frames; some pixels are grey, black or white."""
    planes = np.random.default_rng(0).random((2, 3, HEIGHT, WIDTH)).astype(np.float32)
    planes[:, :, 0, 0], planes[:, :, 0, 1], planes[:, :, 0, 2] = 0, 1, 0.4
    return planes


def luma(images):
    return np.tensordot([0.2989, 0.587, 0.114], images, (0, -3))[:, None]


def blend(images, operation, factor):
    """An image blended with black, with its own mean grey, or with its own grey."""
    grey = luma(images)
    others = {
        module.BRIGHTNESS: 0.0,
        module.CONTRAST: grey.mean((1, 2, 3), keepdims=True),
        module.SATURATION: grey,
    }
    return np.clip(factor * images + (1 - factor) * others[operation], 0, 1)


def test_blends(images):
    for factor in (0.0, 0.7, 1.0, 1.3):
        for operation in (module.BRIGHTNESS, module.CONTRAST, module.SATURATION):
            found = module.blend_color(images, operation, factor)
            expected = blend(images, operation, factor)
            np.testing.assert_allclose(found, expected, atol=1e-6, err_msg=str(operation))


@pytest.mark.parametrize("turns", [-0.5, -0.04, 0.0, 0.03, 0.4])
def test_hue_against_the_standard_library(images, turns):
    expected = np.empty_like(images)
    for n, y, x in np.ndindex(2, HEIGHT, WIDTH):
        hue, saturation, value = colorsys.rgb_to_hsv(*images[n, :, y, x].tolist())
        expected[n, :, y, x] = colorsys.hsv_to_rgb((hue + turns) % 1.0, saturation, value)
    np.testing.assert_allclose(module.adjust_hue(images, turns), expected, atol=2e-6)


def test_gamma_and_exposure():
    values = jnp.array([[[-0.2, 0.25]], [[0.5, 1.0]], [[1.5, 0.0]]])
    np.testing.assert_allclose(
        module.adjust_gamma(values, 2.0).ravel(), [0, 0.0625, 0.25, 1, 1, 0], atol=1e-7
    )
    np.testing.assert_allclose(
        module.adjust_exposure(values, -1.0).ravel(), values.ravel() / 2, rtol=1e-6
    )


def test_jitter_in_every_order(images):
    """One program computes every order as the operations do one after another."""
    parameters = jnp.array([1.2, 0.75, 1.15, -0.03])
    orders = list(itertools.permutations(range(4)))
    found = jax.jit(jax.vmap(module.jitter_color, (None, 0, None)))(
        images, jnp.array(orders), parameters
    )
    results = []
    for order, one in zip(orders, found, strict=True):
        expected = images
        for operation in order:
            if operation == module.HUE:
                expected = np.asarray(module.adjust_hue(expected, parameters[operation]))
            else:
                expected = blend(expected, operation, parameters[operation])
        np.testing.assert_allclose(one, expected, atol=3e-6, err_msg=str(order))
        results.append(np.asarray(expected))
    assert max(np.abs(a - results[0]).max() for a in results) > 1e-3  # orders differ


@pytest.mark.parametrize("degrees", [-8.0, 0.0, 3.5, 30.0, 90.0])
def test_rotation_against_pytorch(images, degrees):
    """torchvision interpolates with black first, and then puts the fill where no image was."""
    torch = pytest.importorskip("torch")
    angle = np.deg2rad(degrees)
    # From the result's pixels to the image's, about the center, in pixels.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    points = np.stack([x - (WIDTH - 1) / 2, y - (HEIGHT - 1) / 2], -1) @ turn.T
    grid = torch.from_numpy(points / np.array([WIDTH / 2, HEIGHT / 2])).float()
    with_mask = np.concatenate([images, np.ones((2, 1, HEIGHT, WIDTH), np.float32)], 1)
    sampled = torch.nn.functional.grid_sample(
        torch.from_numpy(with_mask), grid.expand(2, -1, -1, -1), align_corners=False
    ).numpy()
    mask = sampled[:, 3:]
    expected = sampled[:, :3] * mask + (1 - mask) * 0.3
    np.testing.assert_allclose(module.rotate(images, degrees, 0.3), expected, atol=2e-5)


def test_crops_against_pytorch(images):
    torch = pytest.importorskip("torch")
    crop = jax.jit(module.crop_and_resize)
    for top, left, rows, columns in ((0, 0, 13, 18), (1, 0, 12, 17), (3, 5, 10, 11)):
        part = torch.from_numpy(images[:, :, top : top + rows, left : left + columns].copy())
        expected = torch.nn.functional.interpolate(
            part, (HEIGHT, WIDTH), mode="bilinear", antialias=True
        )
        region = Region(jnp.array([top, left]), jnp.array([rows, columns]))
        np.testing.assert_allclose(crop(images, region), expected.numpy(), atol=1e-5)


@functools.cache
def draws(name):
    """The draws of many samples with three cameras."""
    one = functools.partial(
        draw_sample, cameras=3, size=(224, 224), augmentation=AUGMENTATIONS[name]
    )
    return jax.jit(jax.vmap(one))(jnp.arange(4000, dtype=jnp.uint32))


@pytest.mark.parametrize(
    ("name", "coin", "color", "corrupt"),
    [("libero", 0.65, 0.75, 0.75), ("robotwin", 0.5, 2 / 3, 2 / 3)],
)
def test_shares_of_what_is_drawn(name, coin, color, corrupt):
    fell, draw = draws(name)
    assert fell.shape == (4000,)  # one coin for all cameras
    np.testing.assert_allclose(fell.mean(), coin, atol=0.03)
    np.testing.assert_allclose(draw.color.mean(), color, atol=0.03)
    np.testing.assert_allclose(draw.corrupt.mean(), corrupt, atol=0.03)
    assert (draw.color | draw.corrupt).all()
    assert (draw.color[:, 0] != draw.color[:, 1]).any()  # each camera has its own kind
    orders = np.asarray(draw.order).reshape(-1, 4)
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24 and counts.min() > 0.8 * len(orders) / 24


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_ranges_of_what_is_drawn(name):
    settings, (_, draw) = AUGMENTATIONS[name], draws(name)
    jitter = np.asarray(draw.jitter).reshape(-1, 4)
    ranges = [
        *(
            (x, 1 - s, 1 + s)
            for x, s in zip(
                jitter.T,
                (settings.brightness, settings.contrast, settings.saturation),
                strict=False,
            )
        ),
        (jitter[:, 3], -settings.hue, settings.hue),
        (draw.gamma, *settings.gamma),
        (draw.angle, -settings.rotation, settings.rotation),
        (draw.exposure, -settings.exposure, settings.exposure),
        (draw.crop.size[..., 0] / 224, *settings.crop),
    ]
    for values, low, high in ranges:
        values = np.asarray(values)
        slack = 1e-3 + 0.5 / 224
        assert values.min() >= low - slack and values.max() <= high + slack
        assert values.max() - values.min() >= 0.97 * (high - low) - 1 / 224
        np.testing.assert_allclose(values.mean(), (low + high) / 2, atol=0.03 * (high - low) + 1e-3)
    np.testing.assert_array_equal(draw.crop.size[..., 0], draw.crop.size[..., 1])
    assert (draw.crop.start >= 0).all()
    assert (draw.crop.start + draw.crop.size <= 224).all()


def test_whole_samples():
    """What the coin spares keeps its pixels; both frames of a clip change alike; and a sample
    depends on its own pixels and seed, not on its batch, but for the last bit."""
    settings = AUGMENTATIONS["libero"]
    clips = np.random.default_rng(1).random((6, 2, 1, 3, HEIGHT, WIDTH)).astype(np.float32)
    clips = np.concatenate([clips, clips], 2)
    seeds = np.array([3, 99, 2**32 - 1, 7, 7, 0], np.uint32)
    run = jax.jit(augment, static_argnums=2)
    found = np.asarray(run(clips, seeds, settings))
    coin = functools.partial(draw_sample, cameras=2, size=(HEIGHT, WIDTH), augmentation=settings)
    fell = np.asarray(jax.vmap(lambda seed: coin(seed)[0])(seeds))
    assert 0 < fell.sum() < 6
    changed = np.abs(found - clips).max((2, 3, 4, 5))
    np.testing.assert_array_equal(changed > 0.01, np.stack([fell, fell], 1))
    np.testing.assert_array_equal(found[~fell], clips[~fell])
    np.testing.assert_array_equal(found[:, :, 0], found[:, :, 1])
    assert found.min() >= 0 and found.max() <= 1
    for rows in ([5, 4, 3, 2, 1, 0], [4, 4, 0, 2, 2, 1]):
        again = run(clips[rows], seeds[rows], settings)
        np.testing.assert_allclose(again, found[rows], atol=1e-6)


def test_the_generator_is_not_a_setting():
    """Draws stay the same when another generator is the default of JAX."""

    def angles():
        coin = functools.partial(
            draw_sample, cameras=1, size=(24, 32), augmentation=AUGMENTATIONS["libero"]
        )
        return jax.vmap(lambda seed: coin(seed)[1].angle)(jnp.array([3, 2**31], jnp.uint32))

    expected = angles()
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(angles(), expected)


def test_presets_are_those_of_the_specification():
    """docs/spec/imagewam_flux2.md, 7.4."""
    libero, robotwin = (dataclasses.asdict(AUGMENTATIONS[n]) for n in ("libero", "robotwin"))
    assert libero.pop("kinds") == ("corrupt_only", "color_only", "both", "both")
    assert robotwin.pop("kinds") == ("corrupt_only", "color_only", "both")
    assert [*libero.values()] == [
        0.65,
        0.3,
        0.3,
        0.25,
        0.04,
        (0.8, 1.25),
        0.25,
        0.015,
        (0.92, 1.0),
        8.0,
    ]
    assert [*robotwin.values()] == [
        0.5,
        0.2,
        0.2,
        0.2,
        0.03,
        (0.9, 1.1),
        0.0,
        0.01,
        (0.95, 1.0),
        5.0,
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kinds": ("blur",)}, r"kinds \['blur'\], expected some of \['color_only'"),
        ({"kinds": ()}, r"kinds \[\]"),
        ({"crop": (0.0, 1.0)}, "crop .0.0, 1.0., expected 0 < smallest"),
        ({"crop": (0.9, 1.1)}, "crop"),
    ],
)
def test_settings_that_make_no_sense(change, message):
    with pytest.raises(DataError, match=message):
        Augmentation(**(dataclasses.asdict(AUGMENTATIONS["libero"]) | change))
