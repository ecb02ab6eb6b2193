"""Finished shards of an index that is being built, kept as files so that a build can be resumed.

A part is one .npz file: the columns of one shard and a header that pins the shard they were read
from and the features that were asked for.
"""

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from imagewam_jax.data.index.dataset_index import FORMAT_VERSION
from imagewam_jax.data.index.features import Features
from imagewam_jax.data.index.records import TFRECORD, file_format, shard_checksum
from imagewam_jax.data.index.shard_columns import Arrays, ShardColumns, index_shard
from imagewam_jax.data.index.tfrecord import FOOTER_BYTES
from imagewam_jax.errors import DataError
from imagewam_jax.files import partial_path
from imagewam_jax.storage.objects import AnyPath, is_remote, state

PARTS_DIR = "parts"
_HEADER = "header"


class PartHeader(NamedTuple):
    """The description of one part's shard.

    pinned: file name, size and framing checksum, and the file format if it is not TFRecord.
    absent: how many episodes lack a feature, by "scope/key".
    """

    pinned: dict[str, str | int]
    episodes: int
    frames: int
    absent: dict[str, int]


def part_file(parts_dir: Path, shard: AnyPath) -> Path:
    return parts_dir / f"{shard.name}.npz"


def make_part(shard: AnyPath, features: Features, parts_dir: Path) -> PartHeader:
    """Indexes a shard into a part, or takes the part that an earlier build made of the same file.

    Raises DataError for a shard that cannot be indexed, OSError when the part cannot be written.
    """
    kept = _kept_part(shard, features, parts_dir)
    if kept is not None:
        return kept
    before = state(shard)
    columns = index_shard(shard, features)
    header = _pin(shard, columns.arrays, columns.absent)
    if state(shard) != before:
        raise DataError(f"{shard}: changed while it was indexed")
    content = {**header._asdict(), "state": before, "made_for": _identity(features)}
    _write_part(part_file(parts_dir, shard), columns, content)
    return header


@contextlib.contextmanager
def read_part(parts_dir: Path, shard: AnyPath) -> Iterator[Arrays]:
    """The arrays of an existing part, each read when it is first asked for."""
    # Opened here: NumPy leaves a file open that turns out to be no archive.
    with part_file(parts_dir, shard).open("rb") as file, np.load(file) as arrays:
        yield arrays


def read_header(parts_dir: Path, shard: AnyPath) -> PartHeader:
    with read_part(parts_dir, shard) as part:
        return _as_header(json.loads(part[_HEADER].tobytes()))


def _pin(shard: AnyPath, arrays: Arrays, absent: dict[str, int]) -> PartHeader:
    length = arrays["episode_length"]
    return PartHeader(_pinned(shard, arrays), len(length), int(length.sum()), absent)


def _pinned(shard: AnyPath, arrays: Mapping[str, np.ndarray]) -> dict[str, str | int]:
    found = file_format(shard)
    framing = shard_checksum(shard, found, arrays["record_offset"], arrays["record_length"])
    pinned = {"file": shard.name, "size": _size(shard, arrays), "framing_crc32c": framing}
    return pinned if found == TFRECORD else {**pinned, "format": found}


def _size(shard: AnyPath, arrays: Mapping[str, np.ndarray]) -> int:
    """The size of a shard in bytes.

    Storage does not tell the size of an object. Its records, all of which were read, fill it: it
    ends where the last one does.
    """
    if not is_remote(shard):
        return shard.stat().st_size
    ends = arrays["record_offset"] + arrays["record_length"] + FOOTER_BYTES
    return int(ends.max(initial=0))


def _kept_part(shard: AnyPath, features: Features, parts_dir: Path) -> PartHeader | None:
    """The header of an existing part, if the part is complete and its shard has not changed."""
    now = state(shard)
    try:
        with read_part(parts_dir, shard) as part:
            content = json.loads(part[_HEADER].tobytes())
            if content["state"] != now or content["made_for"] != _identity(features):
                return None
            return _as_header(content) if content["pinned"] == _pinned(shard, part) else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _as_header(content: dict) -> PartHeader:
    return PartHeader(*(content[name] for name in PartHeader._fields))


def _identity(features: Features) -> str:
    """A digest of the format and features: a part made for others cannot be used."""
    asked = json.dumps([FORMAT_VERSION, features.steps, features.episodes])
    return hashlib.sha256(asked.encode()).hexdigest()[:16]


def _write_part(path: Path, columns: ShardColumns, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = np.frombuffer(json.dumps(content).encode(), np.uint8)
    partial = partial_path(path)
    try:
        with open(partial, "wb") as file:
            np.savez(file, **{_HEADER: header}, **columns.arrays)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
