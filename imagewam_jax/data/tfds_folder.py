"""What a TFDS version folder (`.../name/version`) says about itself in its two JSON files."""

import json
from pathlib import Path
from typing import NamedTuple

from imagewam_jax.data.errors import DataError

_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


class StepFeature(NamedTuple):
    """A feature of an RLDS step. kind is "image", "text", "tensor", or a class this reader
    does not know. encoding is that of an image or tensor ("jpeg", "png", "none", "zlib", ...);
    a dimension of unknown size is -1."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    encoding: str


class Split(NamedTuple):
    name: str
    shards: tuple[Path, ...]
    shard_records: tuple[int, ...]


class TfdsFolder(NamedTuple):
    """step_features is keyed by the path below `steps`, such as "observation/image"."""

    path: Path
    name: str
    version: str
    step_features: dict[str, StepFeature]
    splits: dict[str, Split]


def read_tfds_folder(path: Path) -> TfdsFolder:
    """Reads features.json and dataset_info.json.

    Raises DataError when the folder is not an RLDS dataset of TFRecord files as TFDS writes it, or
    when a shard is missing.
    """
    features = _read_json(path, "features.json")
    info = _read_json(path, "dataset_info.json")
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise DataError(f"{path}: fileFormat is {info['fileFormat']!r}, expected 'tfrecord'")
    top = features.get("featuresDict", {}).get("features", {})
    if "sequence" not in top.get("steps", {}):
        raise DataError(
            f"{path}: not RLDS: features.json has no dataset 'steps', it has {sorted(top)}"
        )
    step_features: dict[str, StepFeature] = {}
    _flatten(top["steps"]["sequence"]["feature"], "", step_features)
    filled = [split for split in info.get("splits", []) if split.get("shardLengths")]
    if not filled:
        raise DataError(f"{path}: dataset_info.json lists no split with records")
    splits = {split["name"]: _split(path, info["name"], split) for split in filled}
    return TfdsFolder(path, info["name"], info["version"], step_features, splits)


def _read_json(path: Path, name: str) -> dict:
    file = path / name
    if not file.is_file():
        found = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else "no such folder"
        raise DataError(f"{path}: not a TFDS version folder: no {name}; found {found}")
    try:
        return json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON: {error}") from error


def _flatten(node: dict, key: str, out: dict[str, StepFeature]) -> None:
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            _flatten(child, f"{key}/{name}" if key else name, out)
    elif "image" in node:
        image = node["image"]
        encoding = image.get("encodingFormat") or "unstated"
        out[key] = StepFeature("image", image.get("dtype", "uint8"), _shape(image), encoding)
    elif "text" in node:
        out[key] = StepFeature("text", "str", (), "none")
    elif "tensor" in node:
        tensor = node["tensor"]
        encoding = tensor.get("encoding", "none")
        out[key] = StepFeature("tensor", tensor["dtype"], _shape(tensor), encoding)
    else:
        out[key] = StepFeature(node.get("pythonClassName", "unknown"), "", (), "none")


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
    for shard in shards:
        if not shard.is_file():
            raise DataError(
                f"{shard}: missing; dataset_info.json lists {len(shards)} shards of split "
                f"{split['name']!r}"
            )
    return Split(split["name"], shards, records)
