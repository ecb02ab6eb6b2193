"""Which feature of a LeRobot dataset becomes which feature of the RLDS dataset.

| LeRobot | RLDS step |
|---|---|
| image, video or uint8 array `observation.images.K`, `observation.image`, `K` | `observation/K` |
| `observation.state`, `state` | `observation/state` |
| `observation.X` | `observation/X` |
| `action`, `actions` | `action` |
| anything else, `X` | `X` |

Dots inside a name become underscores. Every number and string of a step is kept, with the dtype and
shape of info.json; float64 is stored compressed (zlib), since TFDS would round it to float32.
Four features are made, not copied, because RLDS defines them: `is_first`, `is_last`, `is_terminal`
(at the last step: the stored `is_terminal`, else `next.done`, else true), `language_instruction`
(the task of the step's task_index). `reward` is the stored one, else `next.reward`, else 0;
`discount` the stored one, else 1. `episode_index`, `frame_index` and `index` number rows: they are
checked (rows.py) and not copied.
"""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np

from imagewam_jax.data.tools.lerobot.folder import Feature, like_image
from imagewam_jax.errors import DataError

ROW_NUMBERS = ("episode_index", "frame_index", "index")
# episodes.py makes these; stored features of these names go into them and are not copied as well.
MADE = ("is_first", "is_last", "is_terminal", "reward", "discount")
_TEXT_KEY = "language_instruction"
_IMAGE_PREFIXES = ("observation.images.", "observation.image.", "observation.")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which LeRobot features become which RLDS keys.

    cameras, copied: LeRobot feature -> RLDS key, of images and of other features.
    read: the features to read from parquet, which are more than those that are copied.
    size: the (height, width) that every image is resized to, if any.
    skip: features that are left out.
    """

    cameras: Mapping[str, str]
    copied: Mapping[str, str]
    read: Mapping[str, Feature]
    features: Mapping[str, Feature]
    size: tuple[int, int] | None
    skip: tuple[str, ...]

    def image_shape(self, key: str) -> tuple[int, int, int]:
        """The (height, width, 3) of an image as it is written."""
        height, width, _ = self.features[key].shape
        return (*(self.size or (height, width)), 3)


def plan_layout(
    features: Mapping[str, Feature],
    size: tuple[int, int] | None = None,
    skip: Collection[str] = (),
) -> Layout:
    """Gives each feature its RLDS key, but those to `skip`.

    DataError: a feature cannot be stored in RLDS, or two have the same key.
    """
    cameras: dict[str, str] = {}
    copied: dict[str, str] = {}
    read: dict[str, Feature] = {}
    taken: dict[str, str] = {_TEXT_KEY: "the instruction"}
    for key, feature in features.items():
        if key in skip:
            continue
        _check_storable(feature)
        if feature.dtype != "video":
            read[key] = feature
        if key in MADE and not is_one_number(feature):
            raise DataError(
                f"feature {key!r} has the dtype {feature.dtype} and the shape {feature.shape}, "
                f"expected one number per step; leave it out with skip={key!r}"
            )
        if key in ROW_NUMBERS or key in MADE:
            continue
        target = rlds_key(feature)
        if target in taken:
            raise DataError(
                f"feature {key!r} would become {target!r}, which is {taken[target]} already; "
                "leave one out with skip"
            )
        taken[target] = repr(key)
        (cameras if feature.is_image else copied)[key] = target
    for key in ("episode_index", "task_index"):
        if key not in read:
            raise DataError(f"info.json: no feature {key!r}; it has {sorted(features)}")
    return Layout(cameras, copied, read, features, size, tuple(skip))


def rlds_key(feature: Feature) -> str:
    """The key of a feature below `steps`."""
    key = feature.key
    if feature.is_image:
        for prefix in _IMAGE_PREFIXES:
            key = key.removeprefix(prefix)
        return f"observation/{_flat(key)}"
    if key in ("state", "observation.state"):
        return "observation/state"
    if key.startswith("observation."):
        return f"observation/{_flat(key.removeprefix('observation.'))}"
    return "action" if key == "actions" else _flat(key)


def is_one_number(feature: Feature) -> bool:
    return not feature.is_image and feature.dtype != "string" and feature.shape in ((), (1,))


def _flat(key: str) -> str:
    return key.replace(".", "_").replace("/", "_")


def _check_storable(feature: Feature) -> None:
    if feature.depth:
        raise DataError(
            f"feature {feature.key!r} is a depth map, which a JPEG cannot hold; leave it out with "
            f"skip={feature.key!r}"
        )
    if feature.is_image:
        return
    if feature.key.startswith("observation.image") or like_image(feature.shape):
        raise DataError(
            f"feature {feature.key!r} looks like a camera, but is of dtype {feature.dtype!r} and "
            f"the shape {feature.shape}; a camera is an image, a video, or uint8 of the shape "
            f"(height, width, channels); leave it out with skip={feature.key!r}"
        )
    if feature.dtype == "string":
        if feature.shape not in ((), (1,)):
            raise DataError(
                f"feature {feature.key!r} holds strings of the shape {feature.shape}, expected one "
                f"per step; leave it out with skip={feature.key!r}"
            )
        return
    try:
        numeric = np.dtype(feature.dtype).kind in "fiub"
    except TypeError:
        numeric = False
    if not numeric:
        raise DataError(
            f"feature {feature.key!r} is of dtype {feature.dtype!r}, expected numbers, a string, "
            f"an image or a video; leave it out with skip={feature.key!r}"
        )
    if any(size < 1 for size in feature.shape):
        raise DataError(
            f"feature {feature.key!r} has the shape {feature.shape}, expected sizes of 1 or more; "
            f"leave it out with skip={feature.key!r}"
        )
