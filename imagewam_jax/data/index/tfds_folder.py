"""Reads the description of a TFDS version folder (`.../name/version`) from its two JSON files."""

import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from imagewam_jax.data.index.features import Feature, Features, declared_features, read_features
from imagewam_jax.data.index.records import (
    FILE_FORMATS,
    TFRECORD,
    check_can_be_read,
    walk_records,
)
from imagewam_jax.data.index.stand_ins import STAND_IN_BYTES, file_stand_in, stand_in
from imagewam_jax.data.index.tf_example import parse_example
from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import AnyPath, is_remote
from imagewam_jax.storage.ranges import starts

_DEFAULT_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_FEATURES, _INFO = "features.json", "dataset_info.json"
# How to make a file that a release of TFDS before 4.1 did not write.
_WRITE_FEATURES = (
    "; TFDS wrote none before 4.1: write it with the builder that made the dataset, "
    "tfds.builder(NAME, data_dir=...).info.features.save_config(this folder)"
)


class Split(NamedTuple):
    """record_bytes: the mean size of a record, by the description; 0 if it does not say it."""

    name: str
    shards: tuple[AnyPath, ...]
    shard_records: tuple[int, ...]
    record_bytes: float = 0.0

    def shard_bytes(self) -> list[int]:
        """The bytes of each shard that is there; of objects, estimated from their records."""
        if not is_remote(self.shards[0]):
            return [path.stat().st_size if path.is_file() else 0 for path in self.shards]
        return [int(self.record_bytes * records) for records in self.shard_records]


class TfdsFolder(NamedTuple):
    """left_out: file names of shards that are listed, are not there, and are left out, by split."""

    path: AnyPath
    name: str
    version: str
    features: Features
    splits: dict[str, Split]
    left_out: dict[str, list[str]] = {}  # noqa: RUF012

    def shards(self) -> list[AnyPath]:
        """The shards of all splits."""
        return [path for split in self.splits.values() for path in split.shards]

    def shard_bytes(self) -> list[int]:
        """Their sizes, as `Split.shard_bytes` has them."""
        return [size for split in self.splits.values() for size in split.shard_bytes()]


def read_tfds_folder(path: AnyPath) -> TfdsFolder:
    """Reads features.json and dataset_info.json, as any release of TFDS since 4.1 has written them.

    Where features.json leaves open how many images a step has, the first record says it. Raises
    DataError when the folder is not an RLDS dataset in a file format that is read. Whether the
    shards are there is for `check_shards` to say.
    """
    declared = _read_json(path, _FEATURES)
    info = _read_json(path, _INFO)
    file_format = info.get("fileFormat") or TFRECORD
    if file_format not in FILE_FORMATS:
        raise DataError(
            f"{path}: fileFormat is {file_format!r}, expected one of {list(FILE_FORMATS)}; convert "
            "it with: tfds convert_format --dataset_dir=DIR --out_path=NEW "
            "--out_file_format=tfrecord"
        )
    check_can_be_read(path, file_format)
    try:
        top = declared_features(declared)
        splits = _splits(path, info, file_format)
        shards = [shard for split in splits.values() for shard in split.shards]
        features = read_features(top, lambda feature: _images_per_step(feature, shards))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    version = str(info.get("version") or path.resolve().name)
    return TfdsFolder(path, str(info["name"]), version, features, splits)


def _read_json(path: AnyPath, name: str) -> Any:
    file = path / name
    if not file.is_file():
        found = sorted(p.name for p in path.iterdir())[:8] if path.is_dir() else "no such folder"
        if versions := sorted(p.parent.name for p in path.glob(f"*/{_INFO}")):
            raise DataError(
                f"{path}: holds the versions {versions}; give the folder of one of them"
            )
        before = _WRITE_FEATURES if name == _FEATURES and (path / _INFO).is_file() else ""
        raise DataError(f"{path}: not a TFDS version folder: no {name}; found {found}{before}")
    if instead := file_stand_in(file):
        raise DataError(f"{file}: {instead}")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file}: not JSON: {error}") from error


def _splits(path: AnyPath, info: Any, file_format: str) -> dict[str, Split]:
    """The splits that have records."""
    if not isinstance(info, dict) or not info.get("name"):
        raise DataError(f"{_INFO} has no 'name'")
    filled = [split for split in info.get("splits", []) if split.get("shardLengths")]
    if not filled:
        raise DataError(f"{_INFO} lists no split with records")
    return {split["name"]: _split(path, info["name"], split, file_format) for split in filled}


def _split(path: AnyPath, dataset: str, split: dict, file_format: str) -> Split:
    try:
        records = tuple(int(n) for n in split["shardLengths"])
        template = split.get("filepathTemplate") or _DEFAULT_TEMPLATE
        names = [
            template.format(
                DATASET=dataset,
                SPLIT=split["name"],
                FILEFORMAT=file_format,
                SHARD_INDEX=f"{i:05d}",
                NUM_SHARDS=f"{len(records):05d}",
                SHARD_X_OF_Y=f"{i:05d}-of-{len(records):05d}",
            )
            for i in range(len(records))
        ]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise DataError(
            f"{_INFO}: the split {split.get('name')!r} has shardLengths "
            f"{split['shardLengths']!r:.80} and filepathTemplate "
            f"{split.get('filepathTemplate')!r}, from which no names of shards follow: {error!r}"
        ) from error
    size = str(split.get("numBytes") or "")
    record_bytes = int(size) / max(1, sum(records)) if size.isdecimal() else 0.0
    return Split(split["name"], tuple(path / name for name in names), records, record_bytes)


def _images_per_step(feature: Feature, shards: Iterable[AnyPath]) -> int:
    """How many images each step of the first record with steps has; 0: not known, or it varies."""
    name = f"steps/{feature.key}/ragged_row_lengths_0"
    for shard in shards:
        if not shard.is_file():
            continue
        try:
            for record in walk_records(shard):
                found = parse_example(record.data).get(name)
                if found is not None and found.kind == "int64" and len(found.values):
                    counts = set(found.values.tolist())
                    return counts.pop() if len(counts) == 1 else 0
        except DataError:  # found again, and told, when the shard is read
            continue
    return 0


def check_shards(folder: TfdsFolder, available: bool = False) -> TfdsFolder:
    """The folder with the shards that are there.

    available: leave out shards that are not there, and splits without any. Without it, raises
    DataError when a shard is missing, or is the stand-in of a file that was not downloaded, with
    how many there are. Raises DataError when none is there, or others than those that are listed.
    """
    kept, left_out = {}, {}
    complaints, contradicted = [], False
    for name, split in folder.splits.items():
        why = why_absent(split.shards)
        there = [i for i, reason in enumerate(why) if not reason]
        if there:
            kept[name] = split._replace(
                shards=tuple(split.shards[i] for i in there),
                shard_records=tuple(split.shard_records[i] for i in there),
            )
        if len(there) < len(why):
            absent = [path for path, reason in zip(split.shards, why, strict=True) if reason]
            left_out[name] = [path.name for path in absent]
            others = [] if there else _unlisted(folder, split)
            contradicted |= bool(others)
            complaints.append(_complain(split, absent, next(filter(None, why)), others))
    if complaints and (contradicted or not available or not kept):
        remedy = (
            "; get them, or index those that are there with: imagewam data index --available-shards"
            if kept and not contradicted
            else ""
        )
        raise DataError("; ".join(complaints) + remedy)
    return folder._replace(splits=kept, left_out=left_out)


def why_absent(shards: Sequence[AnyPath]) -> list[str]:
    """What is in the place of each shard of a folder, "missing" where there is nothing; "" when the
    shard is there."""
    if not is_remote(shards[0]):
        return [file_stand_in(p) if p.is_file() or p.is_symlink() else "missing" for p in shards]
    objects = set(shards[0].parent.iterdir())
    there = [path for path in shards if path in objects]
    start_of = dict(zip(there, starts(there, STAND_IN_BYTES), strict=True))
    return [stand_in(start_of[path]) if path in start_of else "missing" for path in shards]


def _unlisted(folder: TfdsFolder, split: Split) -> list[str]:
    """Shards of the split under other names, such as those of another number of shards."""
    listed = {path.name for path in split.shards}
    found = sorted(folder.path.glob(f"*-{split.name}.*-of-*"))
    return [path.name for path in found if path.name not in listed]


def _complain(split: Split, absent: list[AnyPath], why: str, unlisted: list[str]) -> str:
    others = ", ".join(path.name for path in absent[1:4])
    also = f" (also {others}{', ...' if len(absent) > 4 else ''})" if others else ""
    text = (
        f"{absent[0]}: {why}{also}; {len(split.shards) - len(absent)} of {len(split.shards)} "
        f"shards of split {split.name!r} that {_INFO} lists are there"
    )
    if unlisted:
        text += (
            f", and {len(unlisted)} others, such as {unlisted[0]}: {_INFO} and the shards do not "
            "belong together; take both from the same place"
        )
    return text
