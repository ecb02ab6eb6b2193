"""What a policy is given, wrong in one thing at a time: each check names field, expected, found."""

import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from imagewam_jax.errors import InputError
from imagewam_jax.policy.checks import (
    check_euler_steps,
    check_image_size,
    check_images,
    check_instructions,
    check_numbers,
    check_observations,
    check_text_id,
    check_time,
    clamped_dims,
)
from imagewam_jax.preprocess.inputs import Observations
from imagewam_jax.preprocess.normalization import Normalizer

CAMERAS = ("primary", "wrist")
IMAGES = np.zeros((2, 2, 5, 7, 3), np.uint8)
STATE = np.zeros((2, 3), np.float32)
TEXT_ID = np.array([0, 3], np.int32)


def observe(given):
    return check_observations(given, cameras=CAMERAS, state_dim=3, prompts=4)


def test_what_is_right_comes_back_as_the_compiled_functions_take_it():
    """Whole numbers, doubles and arrays of JAX are taken, in dtypes of which there is one each."""
    images, state = jnp.asarray(IMAGES), np.arange(6.0).reshape(2, 3)
    found = observe(Observations(images, state, TEXT_ID.astype(np.uint8), [[[5, 7], [0, 0]]] * 2))
    assert found.images is images  # an accelerator is not asked for it
    assert found.state.dtype == np.float32 and found.text_id.dtype == np.int32
    np.testing.assert_array_equal(found.state, state)
    np.testing.assert_array_equal(found.text_id, TEXT_ID)
    np.testing.assert_array_equal(found.image_size, [[[5, 7], [0, 0]]] * 2)
    assert observe(Observations(IMAGES, jnp.zeros((2, 3), int), TEXT_ID)).image_size is None
    halves = np.ones((2, 3), ml_dtypes.bfloat16)
    assert observe(Observations(IMAGES, halves, TEXT_ID)).state.dtype == np.float32


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (IMAGES / 255, r"found float64 \[2, 2, 5, 7, 3\]; \(255 \* images\).round\(\).astype"),
        (IMAGES.astype(np.float16), "found float16"),
        (jnp.asarray(IMAGES, jnp.bfloat16), "found bfloat16 .*if they lie in \\[0, 1\\]"),
        (IMAGES.astype(np.int64), r"found int64 .*; images.astype\(np.uint8\) if they lie in"),
        (IMAGES.astype(bool), "found bool"),
        (np.moveaxis(IMAGES, -1, -3), r"uint8 \[2, 2, 3, 5, 7\]; np.moveaxis\(images, -3, -1\)"),
        (np.pad(IMAGES, [(0, 0)] * 4 + [(0, 1)]), r"7, 4\]; images\[..., :3\] leaves"),
        (IMAGES[..., :1], r"found uint8 \[2, 2, 5, 7, 1\]"),
        (IMAGES[0], r"found uint8 \[2, 5, 7, 3\]; images\[None\] adds"),
        (IMAGES[0, 0], r"found uint8 \[5, 7, 3\]"),
        (IMAGES[:, :1], r"found uint8 \[2, 1, 5, 7, 3\]"),
        (IMAGES[:0], r"found uint8 \[0, 2, 5, 7, 3\]; no axis may be empty"),
        (IMAGES[:, :, :0], "no axis may be empty"),
        ([IMAGES[0], IMAGES[0, :1]], "an array, found a list"),
        (None, "found object"),
    ],
)
def test_images(images, found):
    with pytest.raises(InputError, match="^images: expected .*" + found) as error:
        check_images(images, CAMERAS)
    if "an array" not in found:
        assert "uint8 RGB [batch, 2 (cameras: primary, wrist), height, width, 3]" in str(error)


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ([[[6, 7], [5, 7]]] * 2, r"at most \[5, 7\] rows and columns, found \[6, 7\]"),
        ([[[5, 7], [-1, 7]]] * 2, r"at most .*, found \[-1, 7\]"),
        ([[5, 7]] * 2, r"\[batch, camera, 2\] = \[2, 2, 2\], found \[2, 2\]"),
        (np.full((2, 2, 2), 5.0), "whole numbers, found float64"),
    ],
)
def test_sizes_of_images(size, found):
    with pytest.raises(InputError, match="^image_size: expected " + found):
        check_image_size(size, IMAGES.shape)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": STATE[:1]}, r"state: expected \[batch, state dimension\] = \[2, 3\], found \[1"),
        ({"state": STATE[:, :1]}, r"state: .* found \[2, 1\]"),
        ({"state": STATE[0]}, r"state: .* found \[3\]"),
        ({"state": None}, "state: expected real numbers, found object"),
        ({"state": STATE.astype(bool)}, "state: expected real numbers, found bool"),
        ({"state": STATE.astype(complex)}, "state: expected real numbers, found complex128"),
        ({"state": [["1", "2", "3"]] * 2}, "state: expected real numbers, found <U1"),
        (
            {"state": [[0, np.nan, 0]] * 2},
            r"state: expected finite numbers, found nan at \[0, 1\]",
        ),
        (
            {"state": [[1e300, 0, 0]] * 2},
            r"state: expected finite numbers, found inf at \[0, 0\]",
        ),
        ({"text_id": TEXT_ID[:1]}, r"text_id: expected \[batch\] = \[2\], found \[1\]"),
        ({"text_id": 0}, r"text_id: expected \[batch\] = \[2\], found \[\]"),
        ({"text_id": [0, 4]}, r"text_id: expected numbers from 0 to 3, found \[0, 4\]; Policy.tex"),
        ({"text_id": [-1, 0]}, r"text_id: expected numbers from 0 to 3, found \[-1, 0\]"),
        ({"text_id": [2**32, 0]}, r"text_id: expected numbers from 0 to 3, found \[4294967296, 0"),
        ({"text_id": [0.0, 1.0]}, "text_id: expected whole numbers, found float64"),
        ({"text_id": [True, False]}, "text_id: expected whole numbers, found bool"),
    ],
)
def test_states_and_texts_belong_to_the_images(change, message):
    with pytest.raises(InputError, match=f"^{message}"):
        observe(Observations(IMAGES, STATE, TEXT_ID)._replace(**change))


def test_observations_are_observations():
    with pytest.raises(InputError, match=r"observations: expected Observations\(.*, found a dict"):
        observe({"images": IMAGES, "state": STATE, "text_id": TEXT_ID})


def test_a_policy_without_a_state_takes_none():
    given = Observations(IMAGES, np.zeros((2, 0), np.float32), TEXT_ID)
    found = check_observations(given, cameras=CAMERAS, state_dim=0, prompts=4)
    assert found.state.shape == (2, 0)
    with pytest.raises(InputError, match=r"state: expected .* = \[2, 0\], found \[2, 3\]"):
        check_observations(given._replace(state=STATE), cameras=CAMERAS, state_dim=0, prompts=4)


def test_numbers_of_any_batch_are_at_least_one():
    assert check_numbers(np.zeros((5, 2)), "noise", "[batch, step]", (None, 2)).shape == (5, 2)
    message = re.escape("noise: expected [batch, step] = [any, 2], found [0, 2]")
    with pytest.raises(InputError, match=message):
        check_numbers(np.zeros((0, 2)), "noise", "[batch, step]", (None, 2))


def test_single_values():
    assert check_euler_steps(np.int64(3)) == 3 and check_time(np.float32(0.5)) == 0.5
    assert check_time(0) == 0.0 and check_instructions(("a", "b")) == ["a", "b"]
    assert check_text_id([1], 1, 2).tolist() == [1]
    for steps in (0, -1, 2.5, True, None, "10", float("nan")):
        with pytest.raises(InputError, match=f"euler_steps: expected a whole .* found {steps!r}"):
            check_euler_steps(steps)
    for time in (-0.1, 1.5, float("nan"), None, "now"):
        with pytest.raises(InputError, match=f"time: .* from 0 to 1, found {time!r}"):
            check_time(time)
    with pytest.raises(InputError, match=r"instructions: .*, found one text, 'go'"):
        check_instructions("go")
    for instructions in ([], None, [None], ["go", 1], 7, {"go": 1}):
        with pytest.raises(InputError, match="instructions: expected a list of texts"):
            check_instructions(instructions)


def test_dimensions_that_normalization_cuts_off():
    normalizer = Normalizer(np.array([2.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    state = np.array([[3.4, 5.0, 0.0], [1.0, 0.0, -5.1]], np.float32)
    assert clamped_dims(state, normalizer).tolist() == [2]
    assert clamped_dims(state + 0.2, normalizer).tolist() == [0, 1]
