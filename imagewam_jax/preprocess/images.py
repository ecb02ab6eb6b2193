"""From stored images to those that the model sees, inside jit (spec imagewam_flux2 7.2, 7.3)."""

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
    """What becomes of images. Hashable: an argument that jit takes as static.

    layout: one of `LAYOUTS`, or "references".
    image_size: rows and columns that each camera is brought to first.
    augmentation: one of `augment.AUGMENTATIONS`, or "" for none.
    letterbox: numbers of the cameras that keep their aspect ratio, in the middle of black.
    """

    layout: str
    image_size: Size
    augmentation: str = ""
    letterbox: tuple[int, ...] = ()

    def __post_init__(self):
        """DataError: there is no such layout or augmentation."""
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
    """In [-1, 1]: the mosaic of all cameras, or, of the layout "references", each of them.

    sizes: rows and columns of each camera's image in the corner of the buffer; None: it fills it.
    seeds: what each sample's augmentation is drawn from, the same for all moments; None: there is
    no augmentation. A sample's images depend on its own pixels and seed alone.
    """
    cameras = []
    for camera in range(images.shape[1]):
        bring = letterbox if camera in spec.letterbox else resize
        true_size = None if sizes is None else sizes[:, camera, None]
        cameras.append(bring(to_unit_range(images[:, camera]), spec.image_size, true_size))
    found = jnp.stack(cameras, axis=1)
    if spec.augmentation and seeds is not None:
        planes = augment(jnp.moveaxis(found, -1, -3), seeds, AUGMENTATIONS[spec.augmentation])
        found = jnp.moveaxis(planes, -3, -1)
    if spec.layout == REFERENCES:
        return to_model_range(found.swapaxes(1, 2))
    return to_model_range(mosaic(spec.layout, list(found.swapaxes(0, 1))))


def to_unit_range(images: UInt8[Array, "..."]) -> Float32[Array, "..."]:
    """0..255 to [0, 1]."""
    return images.astype(jnp.float32) / 255.0


def to_model_range(images: Float32[Array, "..."]) -> Float32[Array, "..."]:
    """[0, 1] to [-1, 1], as officially."""
    return (images - 0.5) / 0.5


class Layout(NamedTuple):
    """How cameras become one image.

    sizes: what each camera is resized to on its way into it; None: they stay as they are.
    """

    arrange: Callable[[Sequence[Num[Array, "... h w 3"]]], Num[Array, "... H W 3"]]
    sizes: tuple[Size, ...] | None = None


def mosaic(layout: str, cameras: Sequence[Num[Array, "... _ _ 3"]]) -> Num[Array, "... H W 3"]:
    """The one image that the model sees, of the cameras in their order. DataError: they do not fit
    the layout."""
    arrange, sizes = LAYOUTS[layout]
    if sizes is not None:
        _check_count(layout, cameras, len(sizes))
        cameras = [resize(camera, size) for camera, size in zip(cameras, sizes, strict=True)]
    return arrange(cameras)


def single(cameras: Sequence[Num[Array, "... h w 3"]]) -> Num[Array, "... h w 3"]:
    """One camera, as it is."""
    _check_count("single", cameras, 1)
    return cameras[0]


def row(cameras: Sequence[Num[Array, "... h _ 3"]]) -> Num[Array, "... h cw 3"]:
    """Cameras of one height side by side, the first one left (LIBERO: image, wrist image)."""
    return jnp.concatenate(cameras, axis=-2)


def head_over_wrists(cameras: Sequence[Num[Array, "... _ _ 3"]]) -> Num[Array, "... H W 3"]:
    """The head camera above the left and right wrist cameras, which are side by side."""
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
