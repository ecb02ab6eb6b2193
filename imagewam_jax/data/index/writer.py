"""Merges the parts of all shards into the columns of an index, one shard in memory at a time.

Arrays are written as ordinary files that grow, not through a memory map: on a disk that fills up a
write fails with an error, a map kills the process.
"""

import contextlib
import hashlib
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np

from imagewam_jax.data.index import dataset_index as index_format
from imagewam_jax.data.index.columns import pack_texts, unpack_texts
from imagewam_jax.data.index.features import Feature, Features, column_kind
from imagewam_jax.data.index.records import GET_IT_AGAIN, TFRECORD
from imagewam_jax.data.index.shard_columns import Arrays
from imagewam_jax.data.index.shard_parts import part_file, read_header, read_part
from imagewam_jax.data.index.tfds_folder import TfdsFolder
from imagewam_jax.errors import DataError
from imagewam_jax.files import write_file_checksums

# A wide row is compared with this many earlier ones; later rows are stored without a comparison.
_MAX_CODED_ROWS = 2**22


def write_index(folder: TfdsFolder, parts_dir: Path, target: Path) -> None:
    """Merges the parts of all shards into an index at `target`. Raises OSError, DataError."""
    headers = {
        path: read_header(parts_dir, path)
        for split in folder.splits.values()
        for path in split.shards
    }
    _check_record_counts(folder, headers)
    features, absent = _without_absent(folder.features, headers.values())
    meta = {
        "format": index_format.FORMAT_VERSION,
        "name": folder.name,
        "version": folder.version,
        "skipped": {**features.skipped, **absent},
        "images": {f.key: _image(f) for f in features.steps if f.kind == "image"},
        "steps": {
            f.key: {"kind": column_kind(f, in_steps=True), "ragged": f.ragged}
            for f in features.steps
            if f.kind != "image"
        },
        "episodes": {
            f.key: {"kind": column_kind(f, in_steps=False), "ragged": f.ragged}
            for f in features.episodes
        },
        "splits": {},
        # Only where there is something to say: an index of other sets stays what it was.
        **({"left_out": folder.left_out} if folder.left_out else {}),
    }
    for name, split in folder.splits.items():
        with _SplitWriter(target, name, meta) as writer:
            for path in split.shards:
                try:
                    with read_part(parts_dir, path) as part:
                        writer.add_shard(part)
                except (zipfile.BadZipFile, zlib.error, EOFError) as error:
                    part_file(parts_dir, path).unlink()
                    raise DataError(
                        f"{part_file(parts_dir, path)}: what was kept of an unfinished build is "
                        f"damaged ({error}) and was removed; the same command makes it again"
                    ) from error
        formats = {path.name: headers[path].pinned.get("format", TFRECORD) for path in split.shards}
        if len(set(formats.values())) > 1:
            raise DataError(f"{folder.path}: the shards of {name!r} differ in format: {formats}")
        meta["splits"][name] = {
            "shards": [headers[path].pinned for path in split.shards],
            "episodes": sum(headers[path].episodes for path in split.shards),
            "frames": sum(headers[path].frames for path in split.shards),
        }
    meta["checksum"] = index_format.meta_checksum(meta)
    (target / index_format.META_FILE).write_text(json.dumps(meta, indent=1))
    write_file_checksums(target)


def _image(feature: Feature) -> dict:
    declared = {"shape": feature.shape, "dtype": feature.dtype}
    return {**declared, "encoding": feature.encoding} if feature.raw else declared


def _check_record_counts(folder: TfdsFolder, headers: dict) -> None:
    for split in folder.splits.values():
        for path, listed in zip(split.shards, split.shard_records, strict=True):
            found = headers[path].episodes
            if found != listed:
                raise DataError(
                    f"{path}: {found} records, dataset_info.json lists {listed}; {GET_IT_AGAIN}"
                )


def _without_absent(features: Features, headers) -> tuple[Features, dict[str, str]]:
    """The features that every record has, and for each other feature why it is skipped."""
    headers = list(headers)
    total = sum(header.episodes for header in headers)
    counts: dict[str, int] = {}
    for header in headers:
        for name, count in header.absent.items():
            counts[name] = counts.get(name, 0) + count

    def missing(feature, in_steps: bool) -> int:
        scope = ("images" if feature.kind == "image" else "steps") if in_steps else "episodes"
        return counts.get(f"{scope}/{feature.key}", 0)

    absent = {}
    for feature in features.steps:
        if count := missing(feature, True):
            _, n = feature.part
            what = "absent from" if n == 1 else f"there are not {n} images in each step of"
            absent[f"steps/{feature.key}"] = f"{what} {count} of {total} episodes"
    for feature in features.episodes:
        if count := missing(feature, False):
            absent[feature.key] = f"absent from {count} of {total} episodes"
    left = features._replace(
        steps=tuple(f for f in features.steps if not missing(f, True)),
        episodes=tuple(f for f in features.episodes if not missing(f, False)),
    )
    return left, absent


class _ArrayWriter:
    """A .npy file whose first axis grows."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb")  # noqa: SIM115
        self._rows = 0
        self._row_shape: tuple[int, ...] | None = None

    def append(self, rows: np.ndarray) -> None:
        if self._row_shape is None:
            self._row_shape, self._dtype = rows.shape[1:], rows.dtype
            self._write_header()
        self._rows += len(rows)
        self._file.write(np.ascontiguousarray(rows).data if rows.size else b"")

    def _write_header(self) -> None:
        # NumPy pads the header, so that a later one with more rows fits in its place.
        header = {
            "shape": (self._rows, *self._row_shape),
            "fortran_order": False,
            "descr": np.lib.format.dtype_to_descr(self._dtype),
        }
        np.lib.format.write_array_header_1_0(self._file, header)

    def close(self) -> None:
        if self._row_shape is not None:
            end = self._file.tell()
            self._file.seek(0)
            self._write_header()
            self._file.seek(end)
        self._file.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


class _Column:
    """Appends shard after shard to one column; `files(name)` makes the writer of one array."""

    def __init__(self, name: str, declared: dict, files):
        self._files = {part: files(f"{name}:{part}") for part in self.parts(declared)}
        self._name, self._declared = name, declared
        self._codes: dict[bytes, int] = {}
        self._distinct = 0
        self._next_item = 0
        if declared["ragged"]:
            self._files["row_start"].append(np.zeros(1, np.int64))

    @staticmethod
    def parts(declared: dict) -> tuple[str, ...]:
        kind = {"dense": ("values",), "coded": ("ids", "rows"), "text": ("ids", "texts")}
        more = ("text_start",) if declared["kind"] == "text" else ()
        return (*kind[declared["kind"]], *more, *(("row_start",) if declared["ragged"] else ()))

    def add_shard(self, part: Arrays) -> None:
        kind = self._declared["kind"]
        if kind == "dense":
            self._files["values"].append(part[f"{self._name}:values"])
        else:
            ids = part[f"{self._name}:ids"]
            codes = self._code_texts(part) if kind == "text" else self._code_rows(part)
            self._files["ids"].append(codes[ids])
        if self._declared["ragged"]:
            ends = self._next_item + np.cumsum(part[f"{self._name}:counts"], dtype=np.int64)
            self._files["row_start"].append(ends)
            self._next_item = int(ends[-1]) if len(ends) else self._next_item

    def _code_texts(self, part: Arrays) -> np.ndarray:
        texts = unpack_texts(part[f"{self._name}:texts"], part[f"{self._name}:text_start"])
        codes = [self._codes.setdefault(text, len(self._codes)) for text in texts]
        return np.array(codes, np.int32)

    def _code_rows(self, part: Arrays) -> np.ndarray:
        rows = part[f"{self._name}:rows"]
        codes, new = np.empty(len(rows), np.int32), []
        for i, row in enumerate(rows):
            digest = hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            code = self._codes.get(digest)
            if code is None:
                code = self._distinct
                self._distinct += 1
                new.append(i)
                if code < _MAX_CODED_ROWS:
                    self._codes[digest] = code
            codes[i] = code
        self._files["rows"].append(rows[new])
        return codes

    def finish(self) -> None:
        if self._declared["kind"] == "text":
            packed = pack_texts(self._codes)
            self._files["texts"].append(packed["texts"])
            self._files["text_start"].append(packed["text_start"])


class _SplitWriter:
    """Writes the arrays of one split, shard after shard."""

    def __init__(self, target: Path, split: str, meta: dict):
        self._target, self._split = target, split
        self._open: list[_ArrayWriter] = []
        self._plain = {
            name: self._file(name)
            for name in ("episode_start", "episode_shard", "frame_episode", "record_offset")
        } | {"record_length": self._file("record_length")}
        self._images = {
            f"images/{key}:{part}": self._file(f"images/{key}:{part}")
            for key in meta["images"]
            for part in index_format.IMAGE_ARRAYS
        }
        self._columns = [
            _Column(f"{scope}/{key}", declared, self._file)
            for scope in ("steps", "episodes")
            for key, declared in meta[scope].items()
        ]
        self._shards = self._episodes = self._frames = 0
        self._plain["episode_start"].append(np.zeros(1, np.int64))

    def _file(self, name: str) -> _ArrayWriter:
        writer = _ArrayWriter(index_format.array_file(self._target, self._split, name))
        self._open.append(writer)
        return writer

    def add_shard(self, part: Arrays) -> None:
        length = part["episode_length"]
        numbers = np.arange(self._episodes, self._episodes + len(length), dtype=np.int32)
        plain = {
            "episode_start": self._frames + np.cumsum(length, dtype=np.int64),
            "episode_shard": np.full(len(length), self._shards, np.int32),
            "frame_episode": np.repeat(numbers, length),
            "record_offset": part["record_offset"],
            "record_length": part["record_length"],
        }
        for name, rows in plain.items():
            self._plain[name].append(rows)
        for name, writer in self._images.items():
            writer.append(part[name])
        for column in self._columns:
            column.add_shard(part)
        self._shards += 1
        self._episodes += len(length)
        self._frames += int(length.sum())

    def __enter__(self) -> "_SplitWriter":
        return self

    def __exit__(self, error_type, *_) -> None:
        if error_type is not None:
            for writer in self._open:
                writer.abandon()
            return
        for column in self._columns:
            column.finish()
        for writer in self._open:
            writer.close()
