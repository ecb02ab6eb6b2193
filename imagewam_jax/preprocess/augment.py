"""The official image augmentation (docs/spec/imagewam_flux2.md, 7.4) in jit, a seed per sample.

One coin per sample decides for all of its cameras; a sample that the coin spares keeps its pixels.
Each camera draws a kind from a list, and parameters that all frames of its clip share. The steps
are, in this order: color jitter in random order, gamma and exposure (kinds with color); noise
(kinds with corruption); a crop that is resized back and a rotation (every kind); the clamp to
[0, 1].

Images are planes here, [..., 3, h, w] as in torchvision, whose definitions the operations follow.
"""

import dataclasses
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Int32, Key, UInt32

from imagewam_jax.errors import DataError
from imagewam_jax.preprocess.resize import Region, resize_planes

COLOR, CORRUPT, BOTH = "color_only", "corrupt_only", "both"
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Ranges that are drawn from uniformly. Hashable: an argument that jit takes as static."""

    probability: float  # that a sample is augmented at all
    kinds: tuple[str, ...]  # equally likely; one that is listed twice is twice as likely
    brightness: float  # factors are in 1 +- this, also those of contrast and saturation
    contrast: float
    saturation: float
    hue: float  # shifts are in +- this many turns of the color circle
    gamma: tuple[float, float]
    exposure: float  # +- this many stops
    noise: float  # standard deviation, where the range of images is 1
    crop: tuple[float, float]  # the kept side relative to the image's
    rotation: float  # +- this many degrees

    def __post_init__(self) -> None:
        unknown = sorted(set(self.kinds) - {COLOR, CORRUPT, BOTH})
        if unknown or not self.kinds:
            raise DataError(
                f"augmentation kinds {list(self.kinds)}, expected some of {[COLOR, CORRUPT, BOTH]}"
            )
        if not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise DataError(f"augmentation crop {self.crop}, expected 0 < smallest <= largest <= 1")


AUGMENTATIONS = MappingProxyType(
    {
        "libero": Augmentation(
            probability=0.65,
            kinds=(CORRUPT, COLOR, BOTH, BOTH),
            brightness=0.3,
            contrast=0.3,
            saturation=0.25,
            hue=0.04,
            gamma=(0.8, 1.25),
            exposure=0.25,
            noise=0.015,
            crop=(0.92, 1.0),
            rotation=8.0,
        ),
        "robotwin": Augmentation(  # InternData has the same
            probability=0.5,
            kinds=(CORRUPT, COLOR, BOTH),
            brightness=0.2,
            contrast=0.2,
            saturation=0.2,
            hue=0.03,
            gamma=(0.9, 1.1),
            exposure=0.0,
            noise=0.01,
            crop=(0.95, 1.0),
            rotation=5.0,
        ),
    }
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Draw:
    """The parameters of one camera's clip; the coin, which is the sample's, is apart.

    Under `jax.vmap`, those of several clips.
    """

    color: Bool[Array, "*clips"]
    corrupt: Bool[Array, "*clips"]
    # A permutation of BRIGHTNESS, CONTRAST, SATURATION and HUE.
    order: Int32[Array, "*clips 4"]
    # Their parameters, in that sequence whatever the order.
    jitter: Float32[Array, "*clips 4"]
    gamma: Float32[Array, "*clips"]
    exposure: Float32[Array, "*clips"]
    noise_key: Key[Array, "*clips"]
    crop: Region
    angle: Float32[Array, "*clips"]


def augment(
    clips: Float32[Array, "b camera frame 3 h w"],
    seeds: UInt32[Array, " b"],
    augmentation: Augmentation,
) -> Float32[Array, "b camera frame 3 h w"]:
    """Augments clips in [0, 1]. A sample's result depends on its own pixels and seed alone."""

    def sample(
        clips: Float32[Array, "camera frame 3 h w"], seed: UInt32[Array, ""]
    ) -> Float32[Array, "camera frame 3 h w"]:
        fell, draws = draw_sample(seed, clips.shape[0], clips.shape[-2:], augmentation)
        changed = jax.vmap(lambda clip, draw: augment_clip(clip, draw, augmentation))(clips, draws)
        return jnp.where(fell, changed, clips)

    return jax.vmap(sample)(clips, seeds)


def draw_sample(
    seed: UInt32[Array, ""], cameras: int, size: tuple[int, int], augmentation: Augmentation
) -> tuple[Bool[Array, ""], Draw]:
    """Whether the coin fell, and the draws of the cameras (with a leading axis)."""
    # The generator is named because the default of JAX is a setting, and under `rbg` the numbers of
    # a sample depend on its batch.
    key = jax.random.key(seed.astype(jnp.uint32), impl="threefry2x32")
    fell = jax.random.uniform(jax.random.fold_in(key, 0)) < augmentation.probability
    keys = jax.vmap(lambda camera: jax.random.fold_in(key, camera))(1 + jnp.arange(cameras))
    return fell, jax.vmap(lambda key: draw_clip(key, size, augmentation))(keys)


def draw_clip(key: Key[Array, ""], size: tuple[int, int], augmentation: Augmentation) -> Draw:
    """The parameters of one camera's clip of `size` rows and columns.

    The crop keeps the same fraction of both sides, rounded to whole pixels; all places are equally
    likely.
    """
    noise_key, key = jax.random.split(key)
    # All numbers are drawn at once: each draw takes the compiler a third of a second.
    uniform = jax.random.uniform(key, (15,))
    kind, gamma, exposure, angle, kept = uniform[:5]
    factors = jnp.asarray(
        [augmentation.brightness, augmentation.contrast, augmentation.saturation], jnp.float32
    )
    low = jnp.append(jnp.maximum(1 - factors, 0), -augmentation.hue)
    high = jnp.append(1 + factors, augmentation.hue)
    kind = _whole_below(kind, len(augmentation.kinds))
    whole = jnp.asarray(size, jnp.int32)
    kept = jnp.round(whole * _between(kept, *augmentation.crop)).astype(jnp.int32)
    kept = jnp.clip(kept, 1, whole)
    return Draw(
        color=jnp.asarray([name != CORRUPT for name in augmentation.kinds])[kind],
        corrupt=jnp.asarray([name != COLOR for name in augmentation.kinds])[kind],
        order=jnp.argsort(uniform[5:9]).astype(jnp.int32),
        jitter=_between(uniform[9:13], low, high),
        gamma=_between(gamma, *augmentation.gamma),
        exposure=_between(exposure, -augmentation.exposure, augmentation.exposure),
        noise_key=noise_key,
        crop=Region(_whole_below(uniform[13:15], whole - kept + 1), kept),
        angle=_between(angle, -augmentation.rotation, augmentation.rotation),
    )


Bound = Float32[Array, "*n"] | Int[Array, "*n"] | float


def _between(uniform: Float32[Array, "*n"], low: Bound, high: Bound) -> Float32[Array, "*n"]:
    return low + uniform * (high - low)


def _whole_below(uniform: Float32[Array, "*n"], bound: Bound) -> Int32[Array, "*n"]:
    """0, 1, ... bound - 1. `uniform` is at most 1 - 2^-23, so that rounding never gives `bound`."""
    return jnp.floor(uniform * bound).astype(jnp.int32)


def augment_clip(
    clip: Float32[Array, "frame 3 h w"], draw: Draw, augmentation: Augmentation
) -> Float32[Array, "frame 3 h w"]:
    """Applies given parameters to one camera's frames."""
    colored = jitter_color(clip, draw.order, draw.jitter)
    colored = adjust_gamma(colored, draw.gamma)
    if augmentation.exposure:
        colored = adjust_exposure(colored, draw.exposure)
    clip = jnp.where(draw.color, colored, clip)
    noise = augmentation.noise * jax.random.normal(draw.noise_key, clip.shape[-3:])
    clip = jnp.where(draw.corrupt, clip + noise, clip)
    clip = crop_and_resize(clip, draw.crop)
    clip = rotate(clip, draw.angle, clip.mean())
    return clip.clip(0.0, 1.0)


def jitter_color(
    images: Float[Array, "*n 3 h w"], order: Int[Array, "4"], parameters: Float[Array, "4"]
) -> Float[Array, "*n 3 h w"]:
    """Applies the four color operations in some order.

    parameters: of brightness, contrast, saturation and hue, in that sequence.

    A batch has every order at once, so each place in the order computes whatever it can hold. The
    hue costs most: it is computed once, between the blends that come before and after it.
    """
    hue_place = jnp.argmax(order == HUE)
    for place in (0, 1, 2):
        factor = jnp.where(place < hue_place, parameters[order[place]], 1.0)
        images = blend_color(images, order[place], factor)
    images = adjust_hue(images, parameters[HUE])
    for place in (1, 2, 3):
        factor = jnp.where(place > hue_place, parameters[order[place]], 1.0)
        images = blend_color(images, order[place], factor)
    return images


def blend_color(
    images: Float[Array, "*n 3 h w"],
    operation: Int[Array, ""] | int,
    factor: Float[Array, ""] | float,
) -> Float[Array, "*n 3 h w"]:
    """Changes the brightness, contrast or saturation of images; a factor of 1 changes nothing.

    Images are blended with black, with their own mean grey, or with each pixel's own grey.
    """
    own = grey(images)
    mean = own.mean(axis=(-3, -2, -1), keepdims=True)
    other = jnp.where(operation == CONTRAST, mean, jnp.where(operation == SATURATION, own, 0.0))
    return (factor * images + (1.0 - factor) * other).clip(0.0, 1.0)


def grey(images: Float[Array, "*n 3 h w"]) -> Float[Array, "*n 1 h w"]:
    """Luma, with the rounded weights of torchvision."""
    red, green, blue = (images[..., channel : channel + 1, :, :] for channel in range(3))
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def adjust_hue(
    images: Float[Array, "*n 3 h w"], turns: Float[Array, ""] | float
) -> Float[Array, "*n 3 h w"]:
    """Moves the hue of HSV by a fraction of the color circle."""
    red, green, blue = (images[..., channel, :, :] for channel in range(3))
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    some = jnp.where(chroma > 0, chroma, 1.0)
    # The largest channel is found by comparing channels, not as the one that equals the largest
    # value: XLA may compute that value apart, rounded otherwise, and then no channel equals it.
    sector = jnp.where(  # 0 to 6: red, yellow, green, cyan, blue, magenta, red
        (red >= green) & (red >= blue),
        (green - blue) / some,
        jnp.where(green >= blue, 2.0 + (blue - red) / some, 4.0 + (red - green) / some),
    )
    sector = sector + 6.0 * turns

    def channel(offset: float) -> Float[Array, "*n h w"]:
        """The value, less the chroma where the hue is far from this channel's own."""
        away = sector + offset
        away = away - 6.0 * jnp.floor(away / 6.0)
        return value - chroma * jnp.minimum(away, 4.0 - away).clip(0.0, 1.0)

    return jnp.stack([channel(5.0), channel(3.0), channel(1.0)], axis=-3)


def adjust_gamma(
    images: Float[Array, "*n 3 h w"], gamma: Float[Array, ""] | float
) -> Float[Array, "*n 3 h w"]:
    """Clamps images to [0, 1] and raises them to this power."""
    return images.clip(0.0, 1.0) ** gamma


def adjust_exposure(
    images: Float[Array, "*n 3 h w"], stops: Float[Array, ""] | float
) -> Float[Array, "*n 3 h w"]:
    """Doubles brightness once per stop. Not clamped: the noise is added first."""
    return images * 2.0**stops


def crop_and_resize(images: Float[Array, "*n 3 h w"], region: Region) -> Float32[Array, "*n 3 h w"]:
    """A region of the images, stretched to their whole size."""
    return resize_planes(images, images.shape[-2:], region)


def rotate(
    images: Float[Array, "*n 3 h w"],
    degrees: Float[Array, ""] | float,
    fill: Float[Array, ""] | float,
) -> Float[Array, "*n 3 h w"]:
    """Rotates counter-clockwise about the center, bilinearly, with `fill` outside of the image.

    A pixel that is partly outside is interpolated with black and then blended with `fill` by the
    share that was inside, as in torchvision.
    """
    height, width = images.shape[-2:]
    angle = jnp.deg2rad(degrees)
    y = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2)[:, None]
    x = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2)[None, :]
    source_y = jnp.sin(angle) * x + jnp.cos(angle) * y + (height - 1) / 2
    source_x = jnp.cos(angle) * x - jnp.sin(angle) * y + (width - 1) / 2
    top, left = jnp.floor(source_y), jnp.floor(source_x)
    down, right = source_y - top, source_x - left

    # A row per pixel, so that one index fetches that pixel of every frame and channel.
    pixels = jnp.moveaxis(images.reshape(-1, height * width), 0, 1)
    total = jnp.zeros((height, width, 1), images.dtype)
    inside = jnp.zeros((height, width), images.dtype)
    for row, row_part in ((top, 1.0 - down), (top + 1, down)):
        for column, column_part in ((left, 1.0 - right), (left + 1, right)):
            exists = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = jnp.where(exists, row_part * column_part, 0.0)
            place = row.astype(jnp.int32) * width + column.astype(jnp.int32)
            total = total + weight[..., None] * jnp.take(pixels, place, axis=0, mode="clip")
            inside = inside + weight
    found = jnp.moveaxis(total, -1, 0).reshape(images.shape)
    return found * inside + (1.0 - inside) * fill
