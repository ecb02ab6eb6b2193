"""From stored images to the model's, inside jit (docs/spec/imagewam_flux2.md, 7.2, 7.3)."""

import dataclasses
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Num, UInt8, UInt32

from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.augment import AUGMENTATIONS, augment
from imagewam_jax.preprocess.resize import Size, letterbox, resize

REFERENCES = "references"  # the layout in which each camera is a reference image of its own


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """How images are prepared. Hashable: an argument that jit takes as static.

    layout: one of `LAYOUTS`, or "references".
    image_size: rows and columns that each camera is resized to first.
    augmentation: one of `augment.AUGMENTATIONS`, or "" for none.
    letterbox: numbers of the cameras that keep their aspect ratio, centered in black.
    """

    layout: str
    image_size: Size
    augmentation: str = ""
    letterbox: tuple[int, ...] = ()

    def __post_init__(self):
        """DataError: the layout or the augmentation is unknown."""
        for what, name, known in (
            ("camera layout", self.layout, [*LAYOUTS, REFERENCES]),
            ("augmentation", self.augmentation, ["", *AUGMENTATIONS]),
        ):
            if name not in known:
                raise DataError(f"no {what} {name!r}, there are {sorted(known)}")


def prepare_images(
    images: UInt8[Array, "b camera moment H W 3"],
    sizes: Int[Array, "b camera 2"] | None,
    spec: ImageSpec,
    seeds: UInt32[Array, " b"] | None,
) -> Float32[Array, "b moment *camera h w 3"]:
    """Resizes, augments and arranges images; the results are in [-1, 1].

    Returns the mosaic of all cameras or, for the layout "references", each camera by itself.

    sizes: rows and columns of each image in the corner of its buffer; None: images fill it.
    seeds: each sample's augmentation is drawn from its seed, the same for all moments; None: no
        augmentation. A sample's images depend on its own pixels and seed alone.
    """
    cameras = []
    for camera in range(images.shape[1]):
        bring_to_size = letterbox if camera in spec.letterbox else resize
        true_size = None if sizes is None else sizes[:, camera, None]
        pixels = to_unit_range(images[:, camera])
        cameras.append(bring_to_size(pixels, spec.image_size, true_size))
    stacked = jnp.stack(cameras, axis=1)
    if spec.augmentation and seeds is not None:
        planes = augment(jnp.moveaxis(stacked, -1, -3), seeds, AUGMENTATIONS[spec.augmentation])
        stacked = jnp.moveaxis(planes, -3, -1)
    if spec.layout == REFERENCES:
        return to_model_range(stacked.swapaxes(1, 2))
    return to_model_range(mosaic(spec.layout, list(stacked.swapaxes(0, 1))))


def to_unit_range(images: UInt8[Array, "..."]) -> Float32[Array, "..."]:
    """Scales 0..255 to [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def to_model_range(images: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """Scales [0, 1] to [-1, 1], by the official formula."""
    return (images - 0.5) / 0.5


class Layout(NamedTuple):
    """How cameras become one image.

    sizes: what each camera is resized to first; None: cameras keep their size.
    """

    arrange: Callable[[Sequence[Num[Array, "... h w 3"]]], Num[Array, "... H W 3"]]
    sizes: tuple[Size, ...] | None = None


def mosaic(layout: str, cameras: Sequence[Num[Array, "... _ _ 3"]]) -> Num[Array, "... H W 3"]:
    """Arranges cameras, in their order, in the one image that the model sees.

    DataError: they do not fit the layout.
    """
    arrange, sizes = LAYOUTS[layout]
    if sizes is not None:
        _check_count(layout, cameras, len(sizes))
        cameras = [resize(camera, size) for camera, size in zip(cameras, sizes, strict=True)]
    return arrange(cameras)


def single(cameras: Sequence[Num[Array, "... h w 3"]]) -> Num[Array, "... h w 3"]:
    """Takes the only camera as it is."""
    _check_count("single", cameras, 1)
    return cameras[0]


def row(cameras: Sequence[Num[Array, "... h _ 3"]]) -> Num[Array, "... h cw 3"]:
    """Puts cameras of one height side by side, the first one left (LIBERO: image, wrist image)."""
    return jnp.concatenate(cameras, axis=-2)


def head_over_wrists(cameras: Sequence[Num[Array, "... _ _ 3"]]) -> Num[Array, "... H W 3"]:
    """Puts the head camera above the left and right wrist cameras, which are side by side."""
    head, left, right = cameras
    return jnp.concatenate([head, row([left, right])], axis=-3)


LAYOUTS: MappingProxyType[str, Layout] = MappingProxyType(
    {
        "single": Layout(single),
        "row": Layout(row),
        # RoboTwin and InternData.
        "compact_288x256": Layout(head_over_wrists, ((192, 256), (96, 128), (96, 128))),
        "legacy_384x320": Layout(head_over_wrists, ((256, 320), (128, 160), (128, 160))),
    }
)


def _check_count(layout: str, cameras: Sequence[Array], expected: int) -> None:
    if len(cameras) != expected:
        raise DataError(f"layout {layout!r}: {len(cameras)} cameras, expected {expected}")
