"""The cameras of a dataset, the sizes of their pictures, and how a config takes them."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from imagewam_jax.data.index.dataset_index import DatasetIndex
from imagewam_jax.data.tools.camera_roles import NO_VIEW, camera_roles

# A policy's image is a grid of patches of this side (docs/spec/imagewam_flux2.md, 3).
PATCH = 16
LONGEST_SIDE = 224
# A camera whose aspect ratio differs by more is kept from being stretched.
STRETCH = 1.1


class Pictures(NamedTuple):
    """One stored image feature, over all splits.

    sizes: episodes by the (rows, columns) of their first picture. unreadable: episodes that have
      steps and no picture that is a JPEG or a PNG.
    dtype, channels: of the pixels; channels are -1 where features.json leaves them open.
    """

    key: str
    sizes: dict[tuple[int, int], int]
    unreadable: int
    dtype: str
    channels: int

    @property
    def usual_size(self) -> tuple[int, int]:
        return max(self.sizes, key=self.sizes.get)

    def text(self) -> str:
        """The sizes in words."""
        words = [f"{h} x {w}" for h, w in self.sizes]
        if len(words) > 1:
            words = [f"{h} x {w} ({n} episodes)" for (h, w), n in self.sizes.items()]
        if self.unreadable:
            words.append(f"no picture in {self.unreadable} episodes")
        kind = "" if self.dtype == "uint8" else f", {self.dtype}"
        kind += "" if self.channels in (3, -1) else f", {self.channels} channels"
        return ", ".join(words[:6]) + (", ..." if len(words) > 6 else "") + kind


class CameraGuess(NamedTuple):
    """roles: {role: key}, in the order of the layout. The other fields are those of `data`."""

    roles: dict[str, str]
    image_size: tuple[int, int]
    layout: str
    letterbox: tuple[str, ...]
    reason: str


def all_pictures(index: DatasetIndex) -> dict[str, Pictures]:
    """Every image feature, by key."""
    found = {}
    for key, column in next(iter(index.splits.values())).images.items():
        sizes: Counter = Counter()
        unreadable = 0
        for split in index.splits.values():
            filled = np.diff(split.episode_start) > 0
            for size in split.images[key].size_ehw[filled].tolist():
                sizes[tuple(size)] += 1
        unreadable = sizes.pop((0, 0), 0)
        found[key] = Pictures(
            key, dict(sizes.most_common()), unreadable, column.dtype, column.shape[-1]
        )
    return found


def guess_cameras(pictures: dict[str, Pictures]) -> CameraGuess | None:
    """The cameras that a policy can use; None if there are none."""
    usable = {
        key: found
        for key, found in pictures.items()
        if found.dtype == "uint8" and found.sizes and not NO_VIEW.search(key.lower())
    }
    roles = camera_roles(usable)
    if not roles:
        return None
    others = [key for key in pictures if key not in roles.values()]
    reason = "roles by the names of the keys"
    reason += f"; left out: {', '.join(map(repr, others))}" if others else ""
    first = usable[next(iter(roles.values()))].usual_size
    size = _image_size(first)
    stretched = tuple(role for role, key in roles.items() if _stretch(usable[key], size) > STRETCH)
    layout = "single" if len(roles) == 1 else "row"
    return CameraGuess(roles, size, layout, stretched, reason)


def _image_size(stored: tuple[int, int]) -> tuple[int, int]:
    scale = min(1.0, LONGEST_SIDE / max(stored))
    rows, columns = (max(PATCH, round(side * scale / PATCH) * PATCH) for side in stored)
    return rows, columns


def _stretch(pictures: Pictures, size: tuple[int, int]) -> float:
    """By how much the aspect ratio of the pictures changes, at least 1."""
    ratios = [(h / w) / (size[0] / size[1]) for h, w in pictures.sizes]
    return max(max(ratio, 1 / ratio) for ratio in ratios)
