"""Checks of what a policy is given, before anything is computed from it.

Without them most mistakes would pass unseen: JAX repeats a state of one number over all dimensions,
takes the last row for an index beyond it, and goes on with NaN; images in [0, 1] would be divided
by 255 once more. Each check raises an InputError that names the field, what was expected and what
was found, and returns the value in the form that the compiled functions take, so that none of them
is compiled anew for another dtype.

Of images only dtype and shape are looked at, so those on an accelerator stay there. The other
arrays are small: they are fetched, and their values are checked.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int, Int32, Integer, UInt8

from imagewam_jax.errors import InputError
from imagewam_jax.policy.real_time import Previous
from imagewam_jax.preprocess.inputs import Observations
from imagewam_jax.preprocess.normalization import CLAMP, Normalizer


def check_observations(
    given: Any, *, cameras: Sequence[str], state_dim: int, prompts: int
) -> Observations:
    """Observations for a policy with these cameras, dimensions of the state (0: it has none) and
    number of prompts."""
    if not isinstance(given, Observations):
        raise InputError(
            f"observations: expected Observations(images, state, text_id), found {_kind(given)}"
        )
    images = check_images(given.images, cameras)
    batch = images.shape[0]
    return Observations(
        images=images,
        state=check_numbers(given.state, "state", "[batch, state dimension]", (batch, state_dim)),
        text_id=check_text_id(given.text_id, batch, prompts),
        image_size=check_image_size(given.image_size, images.shape),
    )


def check_images(given: Any, cameras: Sequence[str]) -> UInt8[jax.Array, "b camera h w 3"]:
    """Images of every camera: uint8, channels last."""
    images = given if isinstance(given, jax.Array) else _array(given, "images")
    shape, is_uint8 = images.shape, images.dtype == np.uint8
    right = len(shape) == 5 and shape[1] == len(cameras) and shape[-1] == 3 and 0 not in shape
    if not (right and is_uint8):
        of_cameras = f"{len(cameras)} (cameras: {', '.join(cameras)})"
        raise _unlike(
            "images",
            f"uint8 RGB [batch, {of_cameras}, height, width, 3]",
            f"{images.dtype} {list(shape)}",
            _to_shape(shape) if is_uint8 else _to_uint8(images.dtype),
        )
    return images


def check_image_size(given: Any, images: Sequence[int]) -> Int32[np.ndarray, "b camera 2"] | None:
    """Rows and columns of each image in a buffer of the shape `images`.

    An image of no rows or columns stands for a camera without one, and is black.
    """
    if given is None:
        return None
    field, axes = "image_size", "[batch, camera, 2]"
    sizes = _whole_numbers(given, field, axes, (*images[:2], 2))
    if ((sizes < 0) | (sizes > images[2:4])).any():
        wrong = sizes[((sizes < 0) | (sizes > images[2:4])).any(-1)][0].tolist()
        raise _unlike(field, f"at most {list(images[2:4])} rows and columns", wrong)
    return sizes.astype(np.int32)


def check_text_id(given: Any, batch: int, prompts: int) -> Int32[np.ndarray, " b"]:
    """Rows of the known prompts."""
    ids = _whole_numbers(given, "text_id", "[batch]", (batch,))
    if ((ids < 0) | (ids >= prompts)).any():
        advice = "Policy.text_ids gives those of instructions"
        raise _unlike("text_id", f"numbers from 0 to {prompts - 1}", ids.tolist(), advice)
    return ids.astype(np.int32)


def check_numbers(
    given: Any, field: str, axes: str, shape: Sequence[int | None]
) -> Float32[np.ndarray, "..."]:
    """Finite real numbers of a shape, in float32; a first size of None is any above 0."""
    found = _array(given, field)
    if found.dtype.kind not in "fiu" and not jnp.issubdtype(found.dtype, jnp.floating):
        raise _unlike(field, "real numbers", found.dtype)
    _check_shape(found, field, axes, shape)
    if found.dtype != np.float32:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite: refused
            found = found.astype(np.float32)
    finite = np.isfinite(found)
    if not finite.all():
        place = np.argwhere(~finite)[0].tolist()
        raise _unlike(field, "finite numbers", f"{found[tuple(place)]} at {place}")
    return found


def check_previous(
    given: Any, *, batch: int, horizon: int, action_dim: int, max_delay: int
) -> Previous:
    """What robots execute, for a policy that goes on after at most `max_delay` actions."""
    if not isinstance(given, Previous):
        raise InputError(
            f"previous: expected Previous(actions, length, delay, execute), found {_kind(given)}"
        )
    axes = "[batch, step, action dimension]"
    actions = check_numbers(given.actions, "previous.actions", axes, (batch, horizon, action_dim))
    length, delay, execute = (
        _whole_numbers(getattr(given, name), f"previous.{name}", "[batch]", (batch,))
        for name in Previous._fields[1:]
    )
    most = np.minimum(np.minimum(length, horizon - execute), max_delay)
    for field, found, low, high in (
        ("length", length, 0, horizon),
        ("execute", execute, 1, horizon),
        ("delay", delay, 0, most),
    ):
        high = np.broadcast_to(high, found.shape)
        if (wrong := (found < low) | (found > high)).any():
            row = int(np.argmax(wrong))
            raise _unlike(f"previous.{field}", f"{low} to {high[row]} in row {row}", found[row])
    return Previous(actions, *(each.astype(np.int32) for each in (length, delay, execute)))


def check_euler_steps(given: Any) -> int:
    """A number of Euler steps."""
    whole = isinstance(given, int | np.integer) and not isinstance(given, bool)
    if not whole or given < 1:
        raise _unlike("euler_steps", "a whole number from 1", repr(given))
    return int(given)


def check_time(given: Any) -> float:
    """A time of the flow: 0 is data, 1 is noise."""
    if not isinstance(given, int | float | np.number) or not 0 <= given <= 1:
        raise _unlike("time", "a number from 0 to 1", repr(given))
    return float(given)


def check_instructions(given: Any) -> list[str]:
    """Instructions, at least one."""
    if isinstance(given, str):
        raise _unlike("instructions", "a list of texts", f"one text, {given!r}", "put it in a list")
    found = list(given) if isinstance(given, Sequence | np.ndarray) else []
    if not found or not all(isinstance(text, str) for text in found):
        raise _unlike("instructions", "a list of texts, at least one", repr(given))
    return found


def clamped_dims(
    state: Float32[np.ndarray, "b p"], normalizer: Normalizer
) -> Int[np.ndarray, " dims"]:
    """The dimensions in which the normalized state is cut off: they are so far from the data that
    the policy cannot tell how far."""
    dims = state.shape[1]
    scaled = (state - normalizer.center[:dims]) * normalizer.scale[:dims]
    return np.flatnonzero(np.abs(scaled).max(0) > CLAMP)


def _whole_numbers(
    given: Any, field: str, axes: str, shape: Sequence[int]
) -> Integer[np.ndarray, "..."]:
    found = _array(given, field)
    if found.dtype.kind not in "iu":
        raise _unlike(field, "whole numbers", found.dtype)
    _check_shape(found, field, axes, shape)
    return found


def _array(given: Any, field: str) -> np.ndarray:
    try:
        return np.asarray(given)
    except (TypeError, ValueError) as error:  # rows of several lengths, a tensor of a GPU
        raise _unlike(field, "an array", _kind(given), str(error)) from error


def _check_shape(found: np.ndarray, field: str, axes: str, shape: Sequence[int | None]) -> None:
    fits = found.shape == tuple(shape) or (
        found.ndim == len(shape)
        and shape[0] is None
        and found.shape[1:] == tuple(shape[1:])
        and len(found) > 0
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        raise _unlike(field, f"{axes} = [{sizes}]", list(found.shape))


def _to_uint8(dtype: np.dtype) -> str:
    if jnp.issubdtype(dtype, jnp.floating):
        return (
            "(255 * images).round().astype(np.uint8) if they lie in [0, 1], "
            "images.round().astype(np.uint8) if they lie in [0, 255]"
        )
    return "images.astype(np.uint8) if they lie in [0, 255]"


def _to_shape(shape: Sequence[int]) -> str:
    if len(shape) == 4:
        return "images[None] adds a batch of one, images[:, None] the axis of one camera"
    if 0 in shape:
        return "no axis may be empty"
    if len(shape) != 5 or shape[-1] == 3:
        return ""
    if shape[-3] == 3:
        return "np.moveaxis(images, -3, -1) puts the channels last"
    return "images[..., :3] leaves out the fourth channel" if shape[-1] == 4 else ""


def _kind(given: Any) -> str:
    return f"a {type(given).__name__}"


def _unlike(field: str, expected: Any, found: Any, advice: str = "") -> InputError:
    return InputError(
        f"{field}: expected {expected}, found {found}" + (f"; {advice}" if advice else "")
    )
