"""Reads the description of a TFDS version folder (`.../name/version`) from its two JSON files."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagewam_jax.data.index.columns import CODED_WIDTH, MAX_WIDTH
from imagewam_jax.errors import DataError

_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_STRING_DTYPES = ("string", "object", "str")


class Feature(NamedTuple):
    """One feature of a step or of an episode, as features.json declares it.

    key: the path below `steps`, such as "observation/image"; for an episode feature the path from
      the record's root.
    kind: "image", "text" or "number", or "skipped": then `reason` says why it is not read.
    shape: shape of one row's value; a first dimension of -1 varies from row to row.
    encoding: "jpeg", "png" or "unstated" for images; "none" (a list), "zlib" or "bytes" for
      numbers.
    nested: TFDS stores it as a sequence inside of steps: flat values and row lengths.
    optional: it may be absent from a record.
    """

    key: str
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    encoding: str = "none"
    nested: bool = False
    optional: bool = False
    reason: str = ""

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


class Features(NamedTuple):
    """The features that are read from each record; `skipped` maps the others to a reason."""

    steps: tuple[Feature, ...]
    episodes: tuple[Feature, ...]
    skipped: dict[str, str]


class Split(NamedTuple):
    name: str
    shards: tuple[Path, ...]
    shard_records: tuple[int, ...]


class TfdsFolder(NamedTuple):
    path: Path
    name: str
    version: str
    features: Features
    splits: dict[str, Split]


def read_tfds_folder(path: Path) -> TfdsFolder:
    """Reads features.json and dataset_info.json.

    Raises DataError when the folder is not an RLDS dataset of TFRecord files as TFDS writes it.
    Whether the shards are there is for `check_shards` to say.
    """
    declared = _read_json(path, "features.json")
    info = _read_json(path, "dataset_info.json")
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise DataError(f"{path}: fileFormat is {info['fileFormat']!r}, expected 'tfrecord'")
    top = declared.get("featuresDict", {}).get("features", {})
    if "sequence" not in top.get("steps", {}):
        raise DataError(
            f"{path}: not RLDS: features.json has no dataset 'steps', it has {sorted(top)}"
        )
    filled = [split for split in info.get("splits", []) if split.get("shardLengths")]
    if not filled:
        raise DataError(f"{path}: dataset_info.json lists no split with records")
    splits = {split["name"]: _split(path, info["name"], split) for split in filled}
    return TfdsFolder(path, info["name"], info["version"], read_features(top), splits)


def _read_json(path: Path, name: str) -> dict:
    file = path / name
    if not file.is_file():
        found = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else "no such folder"
        raise DataError(f"{path}: not a TFDS version folder: no {name}; found {found}")
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error


def read_features(top: dict) -> Features:
    """The declared features below the root of features.json."""
    steps: list[Feature] = []
    _flatten(top["steps"]["sequence"]["feature"], "", steps, in_steps=True)
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


def _flatten(node: dict, key: str, out: list[Feature], in_steps: bool) -> None:
    if "featuresDict" in node:
        for name, child in node["featuresDict"].get("features", {}).items():
            _flatten(child, f"{key}/{name}" if key else name, out, in_steps)
    elif "sequence" in node and not _class_name(node).endswith(".Dataset"):
        inner: list[Feature] = []
        _flatten(node["sequence"]["feature"], key, inner, in_steps)
        length = int(node["sequence"].get("length", -1))
        out.extend(_sequence_of(f, length, in_steps) for f in inner)
    else:
        feature = _leaf(node, key, in_steps)
        reason = feature.reason or _reason_to_skip(feature, in_steps)
        out.append(feature._replace(kind="skipped", reason=reason) if reason else feature)


def _leaf(node: dict, key: str, in_steps: bool) -> Feature:
    if "image" in node:
        image = node["image"]
        encoding = image.get("encodingFormat") or "unstated"
        return Feature(key, "image", image.get("dtype", "uint8"), _shape(image), encoding)
    if "text" in node:
        return Feature(key, "text", "string")
    if "classLabel" in node:
        return Feature(key, "number", "int64")
    if "boundingBox" in node:
        return Feature(key, "number", node["boundingBox"].get("dtype", "float32"), (4,))
    if "tensor" in node:
        tensor = node["tensor"]
        kind = "text" if tensor["dtype"] in _STRING_DTYPES else "number"
        return Feature(
            key,
            kind,
            tensor["dtype"],
            _shape(tensor),
            tensor.get("encoding", "none").lower(),
            optional=tensor.get("optional", False),
        )
    name = _class_name(node).rsplit(".", 1)[-1] or "of no known class"
    return Feature(key, "skipped", reason=f"a feature {name!r} is not read")


def _sequence_of(feature: Feature, length: int, in_steps: bool) -> Feature:
    """A sequence of `feature`; a length of -1 varies from row to row."""
    reason = feature.reason
    if not reason and feature.kind == "image":
        reason = "a sequence of images is not read"
    elif not reason and (feature.ragged or feature.nested):
        reason = "a sequence of sequences is not read"
    elif not reason and feature.encoding != "none":
        reason = f"a sequence of tensors stored as {feature.encoding} is not read"
    shape = (length, *feature.shape)
    feature = feature._replace(shape=shape, nested=in_steps, optional=False, reason=reason)
    reason = reason or _reason_to_skip(feature, in_steps)
    return feature._replace(kind="skipped", reason=reason) if reason else feature


def _reason_to_skip(feature: Feature, in_steps: bool) -> str:
    """Why a feature of a known class is nevertheless not indexed; "" when it is."""
    if feature.kind == "image":
        return "" if in_steps else "an image of an episode is not read"
    if -1 in feature.shape[1:]:
        return f"the shape {feature.shape} varies beyond its first dimension"
    if feature.ragged and in_steps and not feature.nested and feature.encoding == "none":
        return f"a plain tensor of the open shape {feature.shape} inside of steps has no row ends"
    if feature.width > MAX_WIDTH:
        return f"{feature.width} numbers in a row, more than {MAX_WIDTH}"
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


def column_kind(feature: Feature, in_steps: bool) -> str:
    """The kind of column (columns.py) that holds a feature, or the values of a ragged one."""
    if feature.kind == "text":
        return "text"
    wide = in_steps and not feature.ragged and feature.width >= CODED_WIDTH
    return "coded" if wide else "dense"


def _class_name(node: dict) -> str:
    return node.get("pythonClassName", "")


def _shape(node: dict) -> tuple[int, ...]:
    return tuple(int(d) for d in node.get("shape", {}).get("dimensions", []))


def _split(path: Path, dataset: str, split: dict) -> Split:
    records = tuple(int(n) for n in split["shardLengths"])
    template = split.get("filepathTemplate") or _DEFAULT_TEMPLATE
    shards = tuple(
        path
        / template.format(
            DATASET=dataset,
            SPLIT=split["name"],
            FILEFORMAT="tfrecord",
            SHARD_INDEX=f"{i:05d}",
            NUM_SHARDS=f"{len(records):05d}",
            SHARD_X_OF_Y=f"{i:05d}-of-{len(records):05d}",
        )
        for i in range(len(records))
    )
    return Split(split["name"], shards, records)


def check_shards(folder: TfdsFolder) -> None:
    """Raises DataError for the first shard that is missing."""
    for split in folder.splits.values():
        for shard in split.shards:
            if not shard.is_file():
                raise DataError(
                    f"{shard}: missing; dataset_info.json lists {len(split.shards)} shards of "
                    f"split {split.name!r}"
                )
