"""What happens to images on the accelerator, inside jit (spec imagewam_flux2 7.2, 7.3)."""

from collections.abc import Callable, Sequence
from types import MappingProxyType

import jax.numpy as jnp
from jaxtyping import Array, Float32, Num, UInt8

from imagewam_jax.data.errors import DataError


def to_model_range(images: UInt8[Array, "..."]) -> Float32[Array, "..."]:
    """0..255 to [-1, 1], in the official order: to [0, 1] first, then (x - 0.5) / 0.5."""
    return (images.astype(jnp.float32) / 255.0 - 0.5) / 0.5


def single(cameras: Sequence[Num[Array, "... h w 3"]]) -> Num[Array, "... h w 3"]:
    """One camera, as it is."""
    _check_count("single", cameras, 1)
    return cameras[0]


def row(cameras: Sequence[Num[Array, "... h w 3"]]) -> Num[Array, "... h cw 3"]:
    """Cameras of one height side by side, the first one left (LIBERO: image, wrist image)."""
    heights = [camera.shape[-3] for camera in cameras]
    if len(set(heights)) != 1:
        raise DataError(f"layout 'row': cameras of heights {heights}, expected equal ones")
    return jnp.concatenate(cameras, axis=-2)


def head_over_wrists(cameras: Sequence[Num[Array, "... h w 3"]]) -> Num[Array, "... H W 3"]:
    """The head camera above the left and right wrist cameras, which are side by side.

    The official `compact_288x256` is a head of 192x256 over wrists of 96x128.
    """
    _check_count("head_over_wrists", cameras, 3)
    head, left, right = cameras
    if left.shape != right.shape or head.shape[-2] != 2 * left.shape[-2]:
        sizes = [camera.shape[-3:-1] for camera in cameras]
        raise DataError(
            f"layout 'head_over_wrists': cameras of {sizes}, expected two equal wrist images and "
            "a head image of twice their width"
        )
    return jnp.concatenate([head, row([left, right])], axis=-3)


Layout = Callable[[Sequence[Num[Array, "... h w 3"]]], Num[Array, "... H W 3"]]
LAYOUTS: MappingProxyType[str, Layout] = MappingProxyType(
    {layout.__name__: layout for layout in (single, row, head_over_wrists)}
)


def mosaic(layout: str, cameras: Sequence[Num[Array, "... h w 3"]]) -> Num[Array, "... H W 3"]:
    """The one image that the model sees. DataError names a layout that is not in `LAYOUTS`, or
    cameras that do not fit it."""
    if layout not in LAYOUTS:
        raise DataError(f"no camera layout {layout!r}, there are {sorted(LAYOUTS)}")
    return LAYOUTS[layout](cameras)


def prepare_images(
    images: UInt8[Array, "b camera 2 h w 3"], layout: str
) -> Float32[Array, "b 2 H W 3"]:
    """A batch's images as the model takes them: current and target mosaics in [-1, 1]."""
    cameras = [images[:, camera] for camera in range(images.shape[1])]
    return to_model_range(mosaic(layout, cameras))


def _check_count(layout: str, cameras: Sequence[Array], expected: int) -> None:
    if len(cameras) != expected:
        raise DataError(f"layout {layout!r}: {len(cameras)} cameras, expected {expected}")
