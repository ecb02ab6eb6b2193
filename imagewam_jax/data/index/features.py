"""The features of a dataset, as features.json declares them, and why some are not read."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from imagewam_jax.data.index.columns import CODED_WIDTH, MAX_WIDTH
from imagewam_jax.data.index.features_json import current_form
from imagewam_jax.errors import DataError

_STRING_DTYPES = ("string", "object", "str")
# Encodings of images whose pixels are stored as numbers.
RAW_ENCODINGS = ("list", "zlib", "bytes")
# A uint8 tensor of this many rows and columns or more, and of 1, 3 or 4 channels, is an image.
_SMALLEST_IMAGE = 8
_CHANNELS = (1, 3, 4)
_AS_IMAGE = "write it as tfds.features.Image to use it as a camera"


class Feature(NamedTuple):
    """One feature of a step or of an episode, as features.json declares it.

    key: the path below `steps`, such as "observation/image"; for an episode feature the path from
      the record's root.
    kind: "image", "text" or "number", or "skipped": then `reason` says why it is not read.
    shape: shape of one row's value; a first dimension of -1 varies from row to row.
    encoding: "jpeg", "png" or "unstated" for images, or one of `RAW_ENCODINGS`: the pixels of a
      uint8 tensor, in a list of numbers, compressed, or as bytes; "none" (a list), "zlib" or
      "bytes" for numbers.
    nested: TFDS stores it as a sequence inside of steps: flat values and row lengths.
    optional: it may be absent from a record.
    stored: the key under which records hold it, where that is not `key`.
    part: (i, n): records hold n images per step under `stored`, and this is number i.
    """

    key: str
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    encoding: str = "none"
    nested: bool = False
    optional: bool = False
    reason: str = ""
    stored: str = ""
    part: tuple[int, int] = (0, 1)

    @property
    def ragged(self) -> bool:
        return self.kind != "image" and bool(self.shape) and self.shape[0] == -1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one item: all dimensions, or those after the one that varies."""
        return self.shape[1:] if self.ragged else self.shape

    @property
    def width(self) -> int:
        """The number of values in one item."""
        return math.prod(self.row_shape)

    @property
    def raw(self) -> bool:
        """Whether it is an image whose pixels are stored as numbers."""
        return self.kind == "image" and self.encoding in RAW_ENCODINGS


class Features(NamedTuple):
    """The features that are read from each record; `skipped` maps the others to a reason."""

    steps: tuple[Feature, ...]
    episodes: tuple[Feature, ...]
    skipped: dict[str, str]


def read_features(
    top: Mapping[str, Any], count_images: Callable[[Feature], int] = lambda feature: 0
) -> Features:
    """The declared features below the root of features.json, in the form of today.

    Several images in one feature become one feature each, "observation/images/0" and so on.
    count_images: is asked for the number of images per step of a sequence that does not declare
      it; 0 when it is not known.
    """
    declared: list[Feature] = []
    _flatten(top["steps"]["sequence"]["feature"], "", declared, in_steps=True)
    steps = [camera for f in declared for camera in _single_images(f, count_images)]
    episodes: list[Feature] = []
    for name, node in top.items():
        if name != "steps":
            _flatten(node, name, episodes, in_steps=False)
    skipped = {f"steps/{f.key}": f.reason for f in steps if f.kind == "skipped"}
    skipped |= {f.key: f.reason for f in episodes if f.kind == "skipped"}
    return Features(
        tuple(f for f in steps if f.kind != "skipped"),
        tuple(f for f in episodes if f.kind != "skipped"),
        skipped,
    )


def declared_features(declared: Any) -> dict[str, Any]:
    """The nodes below the root of features.json, whichever release of TFDS wrote it.

    Raises DataError when it is not what TFDS writes, or not RLDS.
    """
    top = current_form(declared).get("featuresDict", {}).get("features", {})
    if "sequence" not in top.get("steps", {}):
        raise DataError(f"not RLDS: features.json has no dataset 'steps', it has {sorted(top)}")
    return top


def _flatten(node: Mapping[str, Any], key: str, out: list[Feature], in_steps: bool) -> None:
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            _flatten(child, f"{key}/{name}" if key else name, out, in_steps)
    elif "sequence" in node and _class_name(node) != "Dataset":
        inner: list[Feature] = []
        _flatten(node["sequence"]["feature"], key, inner, in_steps)
        length = _size(node["sequence"].get("length", -1), key)
        out.extend(_sequence_of(f, length, in_steps) for f in inner)
    else:
        feature = _leaf(node, key, in_steps)
        reason = feature.reason or _reason_to_skip(feature, in_steps)
        out.append(feature._replace(kind="skipped", reason=reason) if reason else feature)


def _leaf(node: Mapping[str, Any], key: str, in_steps: bool) -> Feature:
    if "image" in node:
        return _image(node["image"], key)
    if "video" in node:
        shape = _shape(node["video"], key) or (-1,)
        return _sequence_of(_image(node["video"], key, shape[1:]), shape[0], in_steps)
    if "text" in node and not node["text"].get("useEncoder"):
        return Feature(key, "text", "string")
    if "classLabel" in node:
        return Feature(key, "number", "int64")
    if "boundingBox" in node:
        return Feature(key, "number", node["boundingBox"].get("dtype", "float32"), (4,))
    if "tensor" in node:
        return _tensor(node["tensor"], key, in_steps)
    name = _class_name(node) or "of no known class"
    return Feature(key, "skipped", reason=f"a feature {name!r} is not read")


def _image(content: Mapping[str, Any], key: str, shape: tuple[int, ...] | None = None) -> Feature:
    shape = _shape(content, key) if shape is None else shape
    encoding = content.get("encodingFormat") or "unstated"
    return Feature(key, "image", content.get("dtype", "uint8"), shape, encoding)


def _tensor(content: Mapping[str, Any], key: str, in_steps: bool) -> Feature:
    shape, dtype = _shape(content, key), str(content.get("dtype", ""))
    encoding = str(content.get("encoding") or "none").lower()
    optional = bool(content.get("optional", False))
    if in_steps and dtype == "uint8" and _is_image_shape(shape):
        encoding = "list" if encoding == "none" else encoding
        return Feature(key, "image", dtype, shape, encoding, optional=optional)
    kind = "text" if dtype in _STRING_DTYPES else "number"
    return Feature(key, kind, dtype, shape, encoding, optional=optional)


def _is_image_shape(shape: tuple[int, ...]) -> bool:
    """Whether it is (height, width, channels), or a number of images of this shape."""
    return (
        len(shape) in (3, 4) and shape[-1] in _CHANNELS and min(shape[-3:-1]) >= _SMALLEST_IMAGE
    ) and shape[0] > 0


def _sequence_of(feature: Feature, length: int, in_steps: bool) -> Feature:
    """A sequence of `feature`; a length of -1 varies from row to row."""
    reason = feature.reason
    if not reason and (feature.ragged or feature.nested):
        reason = "a sequence of sequences is not read"
    elif not reason and feature.kind == "image":
        if len(feature.shape) == 4:
            reason = "a sequence of stacked images is not read"
        feature = feature._replace(shape=feature.shape or (-1, -1, -1))
    elif not reason and feature.encoding != "none":
        reason = f"a sequence of tensors stored as {feature.encoding} is not read"
    shape = (length, *feature.shape)
    feature = feature._replace(shape=shape, nested=in_steps, optional=False, reason=reason)
    reason = reason or _reason_to_skip(feature, in_steps)
    return feature._replace(kind="skipped", reason=reason) if reason else feature


def _reason_to_skip(feature: Feature, in_steps: bool) -> str:
    """Why a feature of a known class is nevertheless not indexed; "" when it is."""
    shape = feature.shape
    if feature.kind == "image":
        if not in_steps:
            return "an image of an episode is not read"
        if shape and len(shape) != 3 + (feature.nested or (feature.raw and len(shape) == 4)):
            return f"an image of the shape {shape} is not read"
        if feature.raw and len(shape) == 4 and not feature.nested and feature.encoding != "list":
            return f"stacked images stored as {feature.encoding} are not read; {_AS_IMAGE}"
        return ""
    like_image = len(shape) >= 3 and in_steps
    remedy = f"; {_AS_IMAGE}" if like_image else ""
    if -1 in shape[1:]:
        return f"the shape {shape} varies beyond its first dimension{remedy}"
    if feature.ragged and in_steps and not feature.nested and feature.encoding == "none":
        return f"a plain tensor of the open shape {shape} inside of steps has no row ends"
    if feature.width > MAX_WIDTH:
        return f"{feature.width} numbers in a row, more than {MAX_WIDTH}{remedy}"
    if feature.kind == "number":
        if feature.encoding not in ("none", "zlib", "bytes"):
            return f"the encoding {feature.encoding!r} is not read"
        try:
            kind = np.dtype(feature.dtype).kind
        except TypeError:
            kind = "?"
        if kind not in "biuf":
            return f"the dtype {feature.dtype} is not read"
    return ""


def _single_images(feature: Feature, count_images: Callable[[Feature], int]) -> list[Feature]:
    """The feature, or one feature for each of the images that it holds per step."""
    if feature.kind != "image" or len(feature.shape) != 4:
        return [feature]
    n = feature.shape[0] if feature.shape[0] != -1 else count_images(feature)
    if n <= 0:
        reason = (
            "a sequence of images whose number per step is not declared and not always the same"
        )
        return [feature._replace(kind="skipped", reason=reason)]
    return [
        feature._replace(
            key=f"{feature.key}/{i}", shape=feature.shape[1:], stored=feature.key, part=(i, n)
        )
        for i in range(n)
    ]


def column_kind(feature: Feature, in_steps: bool) -> str:
    """The kind of column (columns.py) that holds a feature, or the values of a ragged one."""
    if feature.kind == "text":
        return "text"
    wide = in_steps and not feature.ragged and feature.width >= CODED_WIDTH
    return "coded" if wide else "dense"


def _class_name(node: Mapping[str, Any]) -> str:
    return node.get("pythonClassName", "").rsplit(".", 1)[-1]


def _shape(content: Mapping[str, Any], key: str) -> tuple[int, ...]:
    shape = content.get("shape") or {}
    sizes = shape.get("dimensions", []) if isinstance(shape, Mapping) else shape
    if not isinstance(sizes, list):
        raise DataError(f"features.json: {key!r} has the shape {shape!r}, expected a list of sizes")
    return tuple(_size(size, key) for size in sizes)


def _size(value: Any, key: str) -> int:
    """A size as the JSON of a protocol buffer has it, -1 for one that varies."""
    try:
        size = int(value)
    except (TypeError, ValueError):
        size = -2
    if size < -1:
        raise DataError(f"features.json: {key!r} has the size {value!r}, expected 0 or more, or -1")
    return size
