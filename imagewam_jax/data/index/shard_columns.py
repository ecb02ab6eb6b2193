"""One shard's records as columns: the unit of parallel work of an index.

A shard's columns are plain arrays by name, `<scope>/<key>:<array>`, so that they can be kept in a
file. The scope is "steps", "episodes" or "images"; the arrays are those that the column's kind has
(columns.py), and texts are their bytes end to end.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import google_crc32c
import numpy as np
import simplejpeg

from imagewam_jax.data.index.columns import pack_texts
from imagewam_jax.data.index.features import Feature, Features, column_kind
from imagewam_jax.data.index.records import walk_records
from imagewam_jax.data.index.tf_example import ExampleFeature, cut_ints, parse_example
from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import AnyPath

PNG_START = b"\x89PNG\r\n\x1a\n"
Example = dict[str, ExampleFeature]
# The value of every step feature in an episode without steps.
_NOTHING = ExampleFeature("empty", np.empty(0, np.float32))
Arrays = dict[str, np.ndarray]


class ShardColumns(NamedTuple):
    """arrays: the columns, and record_offset, record_length, episode_length of every episode.

    absent: scope/key to the number of episodes that lack it; such a feature has no column.
    """

    arrays: Arrays
    absent: dict[str, int]


def index_shard(path: AnyPath, features: Features) -> ShardColumns:
    """Reads one shard into columns and verifies both checksums of every record.

    Raises DataError, naming the file and the record, for a record that is corrupt or disagrees with
    features.json.
    """
    columns = {f"steps/{f.key}": _column(f, True) for f in features.steps if f.kind != "image"}
    columns |= {f"episodes/{f.key}": _column(f, False) for f in features.episodes}
    columns |= {f"images/{f.key}": _Images(f) for f in features.steps if f.kind == "image"}
    absent = dict.fromkeys(columns, 0)
    counting, packed = counting_order(features), pixel_lists(features)
    offsets, lengths, steps_of = [], [], []
    for number, record in enumerate(walk_records(path)):
        try:
            example = parse_example(record.data, packed)
            steps = count_steps(example, counting)
            for scope, feature in _scoped(features):
                value = read_feature(record.data, example, feature, scope, steps)
                if value is None:
                    absent[f"{scope}/{feature.key}"] += 1
                elif scope == "images":
                    columns[f"images/{feature.key}"].add(record.data, record.base, value)
                else:
                    columns[f"{scope}/{feature.key}"].add(value)
        except DataError as error:
            raise DataError(f"{path}: record {number} at byte {record.offset}: {error}") from error
        offsets.append(record.offset)
        lengths.append(len(record.data))
        steps_of.append(steps)
    arrays = {
        "record_offset": np.array(offsets, np.int64),
        "record_length": np.array(lengths, np.int64),
        "episode_length": np.array(steps_of, np.int64),
    }
    for name, column in columns.items():
        if not absent[name]:
            arrays |= {f"{name}:{part}": array for part, array in column.finish().items()}
    return ShardColumns(arrays, {name: count for name, count in absent.items() if count})


def _scoped(features: Features) -> Iterable[tuple[str, Feature]]:
    for feature in features.steps:
        yield ("images" if feature.kind == "image" else "steps"), feature
    for feature in features.episodes:
        yield "episodes", feature


def _is_list_of_numbers(feature: Feature) -> bool:
    return feature.kind == "number" and feature.encoding == "none"


def counting_order(features: Features) -> list[Feature]:
    """Step features in the order in which `count_steps` looks at them.

    Features with one value per step come first: their count cannot be mistaken for another width.
    """

    def width(feature: Feature) -> int:
        one = feature.nested or feature.kind == "image" or feature.encoding in ("zlib", "bytes")
        return 1 if one else feature.width

    # A list of pixels is not decoded, so that its numbers cannot be counted.
    asked = [f for f in features.steps if width(f) > 0 and (f.nested or f.encoding != "list")]
    return sorted(asked, key=width)


def pixel_lists(features: Features) -> frozenset[str]:
    """The keys, in records, of images that are lists of numbers."""
    lists = [f for f in features.steps if f.encoding == "list"]
    return frozenset(_stored(f) + ("/ragged_flat_values" if f.nested else "") for f in lists)


def _stored(feature: Feature) -> str:
    return f"steps/{feature.stored or feature.key}"


def count_steps(example: Example, counting: list[Feature]) -> int:
    """The number of steps of an episode, from the first of the `counting` features with values."""
    for feature in counting:
        if feature.nested:
            found, width = example.get(f"{_stored(feature)}/ragged_row_lengths_0"), 1
        else:
            found = example.get(_stored(feature))
            width = feature.width if _is_list_of_numbers(feature) else 1
            width = feature.width if feature.kind == "text" else width
        if found is not None and len(found.values):
            return -(-len(found.values) // width)
    return 0


def read_feature(record: bytes, example: Example, feature: Feature, scope: str, steps: int):
    """The value of one feature in one record; None when the record lacks it.

    An image gives its byte ranges, int64 [steps, 2]. Any other feature gives an array [rows, ...]
    of numbers or of bytes objects, where rows is `steps`, or 1 for an episode feature. A ragged
    feature gives two arrays: all items [items, ...], and each row's number of items.
    """
    in_steps = scope != "episodes"
    rows = steps if in_steps else 1
    name = _stored(feature) if in_steps else feature.key
    if feature.kind == "image":
        return _read_image(record, example, feature, name, steps)
    if feature.nested:
        return _read_nested(record, example, feature, name, steps)
    found = example.get(name, _NOTHING if rows == 0 else None)
    if found is None or (not len(found.values) and rows and _needs_values(feature)):
        return _default(feature) if found is None and not in_steps and feature.optional else None
    if feature.encoding in ("zlib", "bytes"):
        ranges = _check_count(_values(found, name, "bytes"), name, rows, (), "tensors")
        return _decode_tensors(record, ranges, feature, name)
    items = _items(record, found, feature, name)
    if feature.ragged:
        if feature.width and len(items) % feature.width:
            raise DataError(f"{len(items)} numbers in {name!r} are not rows of {feature.row_shape}")
        items = items.reshape(-1, *feature.row_shape)
        return items, np.array([len(items)], np.int64)
    return _check_count(items, name, rows, feature.shape, "numbers").reshape(rows, *feature.shape)


def _needs_values(feature: Feature) -> bool:
    return feature.encoding != "none" or (not feature.ragged and feature.width > 0)


def _read_image(record: bytes, example: Example, feature: Feature, name: str, steps: int):
    """The byte range of one image per step; None when there are none, or another number of them."""
    number, of = feature.part
    lacking = _NOTHING if steps == 0 else None
    if feature.nested:
        lengths = example.get(f"{name}/ragged_row_lengths_0", lacking)
        counts = None if lengths is None else _values(lengths, name, "int64")
        if counts is None or len(counts) != steps or (counts != of).any():
            return None
        name = f"{name}/ragged_flat_values"
    found = example.get(name, lacking)
    if found is None or (steps and not len(found.values)):
        return None
    if feature.encoding == "list" and found.kind != "empty":
        (start, length), *_ = _values(found, name, "packed int64").tolist()
        ranges = cut_ints(record, start, length, feature.width)
    else:
        ranges = _values(found, name, "bytes")
    return _check_count(ranges, name, steps * of, (), "images")[number::of]


def _default(feature: Feature):
    """The value that TFDS reads for an optional feature without one."""
    if feature.kind == "text":
        value = np.full((1, *feature.shape), b"", object)
    elif feature.ragged or feature.encoding != "none":
        return None
    else:
        dtype = np.dtype(feature.dtype)
        lowest = {"f": np.finfo, "i": np.iinfo, "u": np.iinfo}.get(dtype.kind)
        value = np.full((1, *feature.shape), lowest(dtype).min if lowest else False, dtype)
    return None if feature.ragged else value


def _read_nested(record: bytes, example: Example, feature: Feature, name: str, steps: int):
    lacking = _NOTHING if steps == 0 else None
    flat = example.get(f"{name}/ragged_flat_values", lacking)
    lengths = example.get(f"{name}/ragged_row_lengths_0", lacking)
    if flat is None or lengths is None or (steps and not len(lengths.values)):
        return None
    counts = _values(lengths, f"{name}/ragged_row_lengths_0", "int64")
    counts = _check_count(counts, name, steps, (), "rows")
    items = _items(record, flat, feature, name)
    total = int(counts.sum())
    width = feature.width if feature.ragged else feature.width // max(feature.shape[0], 1)
    if (counts < 0).any() or len(items) != total * width:
        raise DataError(
            f"{len(items)} values in {name!r}, its rows add up to {total} items of {width}"
        )
    if feature.ragged:
        return items.reshape(-1, *feature.row_shape), counts
    if (counts != feature.shape[0]).any():
        raise DataError(f"{name!r} has a row of another length than {feature.shape[0]}")
    return items.reshape(steps, *feature.shape)


def _items(record: bytes, found: ExampleFeature, feature: Feature, name: str) -> np.ndarray:
    """All values of a feature, [n]: numbers in the declared dtype, texts as bytes objects."""
    if feature.kind == "text":
        ranges = _values(found, name, "bytes")
        texts = np.empty(len(ranges), object)
        texts[:] = [record[start : start + n] for start, n in ranges.tolist()]
        return texts
    dtype = np.dtype(feature.dtype)
    values = _values(found, name, "float" if dtype.kind == "f" else "int64")
    # TFDS writes integers as int64 only, and stores a uint64 by its bits.
    return values.view(np.uint64) if dtype == np.uint64 else values.astype(dtype, copy=False)


def _values(found: ExampleFeature, name: str, kind: str) -> np.ndarray:
    if found.kind != kind and found.kind != "empty":
        raise DataError(f"{name!r} holds a list of {found.kind}, expected {kind}")
    if found.kind == "empty":
        return np.empty((0, 2) if kind == "bytes" else 0, np.int64 if kind != "float" else "f4")
    return found.values


def _check_count(values, name: str, rows: int, shape: tuple[int, ...], what: str) -> np.ndarray:
    if len(values) != rows * int(np.prod(shape, dtype=np.int64)):
        each = f" of {shape}" if shape else ""
        raise DataError(f"{len(values)} {what} in {name!r}, expected {rows} steps{each}")
    return values


def _decode_tensors(record: bytes, ranges: np.ndarray, feature: Feature, name: str):
    """Decodes tensors that are stored as their bytes, one tensor per row."""
    dtype = np.dtype(feature.dtype).newbyteorder("<")
    parts, counts = [], []
    for start, length in ranges.tolist():
        data = record[start : start + length]
        if feature.encoding == "zlib":
            data = _inflate(data, name)
        item = dtype.itemsize * feature.width
        whole = not len(data) % item if item else not data
        if not whole or (not feature.ragged and len(data) != item):
            raise DataError(
                f"a tensor of {len(data)} bytes in {name!r}, expected {dtype} {feature.shape}"
            )
        parts.append(data)
        counts.append(len(data) // item if item else 0)
    joined = b"".join(parts)
    if dtype.kind == "b":
        values = np.frombuffer(joined, np.uint8) != 0
    else:
        values = np.frombuffer(joined, dtype).astype(feature.dtype, copy=False)
    if feature.ragged:
        return values.reshape(-1, *feature.row_shape), np.array(counts, np.int64)
    return values.reshape(len(ranges), *feature.shape)


# Far above any row that is indexed: a few bytes of zlib can stand for gigabytes.
_MAX_TENSOR_BYTES = 2**26


def _inflate(data: bytes, name: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        out = stream.decompress(data, _MAX_TENSOR_BYTES)
    except zlib.error as error:
        raise DataError(f"a tensor in {name!r} is not zlib: {error}") from error
    if not stream.eof:
        why = (
            f"exceeds {_MAX_TENSOR_BYTES} bytes" if len(out) == _MAX_TENSOR_BYTES else "is cut off"
        )
        raise DataError(f"a tensor in {name!r} {why}")
    return out


def _column(feature: Feature, in_steps: bool):
    kind = column_kind(feature, in_steps)
    row = feature.row_shape
    if kind == "text":
        column = _Texts(row)
    else:
        column = _Coded(row, feature.dtype) if kind == "coded" else _Numbers(row, feature.dtype)
    return _RaggedRows(column) if feature.ragged else column


class _Numbers:
    def __init__(self, row_shape: tuple[int, ...], dtype: str):
        self._parts = [np.empty((0, *row_shape), dtype)]

    def add(self, rows: np.ndarray) -> None:
        self._parts.append(rows)

    def finish(self) -> Arrays:
        return {"values": np.concatenate(self._parts)}


class _Coded:
    """Keeps distinct rows once, compared by their bits: -0.0 is not 0.0, and a NaN is itself."""

    def __init__(self, row_shape: tuple[int, ...], dtype: str):
        self._ids = [np.empty(0, np.int32)]
        self._rows: dict[bytes, int] = {}
        self._row_shape, self._dtype = row_shape, np.dtype(dtype)

    def add(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        bits = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
        new = np.ones(len(rows), bool)
        new[1:] = (bits[1:] != bits[:-1]).any(axis=1)
        codes = [self._rows.setdefault(b.tobytes(), len(self._rows)) for b in bits[new]]
        self._ids.append(np.array(codes, np.int32)[np.cumsum(new) - 1])

    def finish(self) -> Arrays:
        rows = np.frombuffer(b"".join(self._rows), self._dtype).reshape(-1, *self._row_shape)
        return {"ids": np.concatenate(self._ids), "rows": rows}


class _Texts:
    def __init__(self, row_shape: tuple[int, ...]):
        self._ids = [np.empty((0, *row_shape), np.int32)]
        self._texts: dict[bytes, int] = {}

    def add(self, rows: np.ndarray) -> None:
        texts = self._texts
        ids = [texts.setdefault(text, len(texts)) for text in rows.ravel()]
        self._ids.append(np.array(ids, np.int32).reshape(rows.shape))

    def finish(self) -> Arrays:
        return {"ids": np.concatenate(self._ids)} | pack_texts(self._texts)


class _RaggedRows:
    def __init__(self, items):
        self._items = items
        self._counts = [np.empty(0, np.int64)]

    def add(self, value: tuple[np.ndarray, np.ndarray]) -> None:
        items, counts = value
        self._items.add(items)
        self._counts.append(counts)

    def finish(self) -> Arrays:
        return {**self._items.finish(), "counts": np.concatenate(self._counts)}


def image_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) from the header of a JPEG or a PNG; None when the bytes are neither."""
    if data.startswith(PNG_START):
        if len(data) < 24 or data[12:16] != b"IHDR":
            return None
        width, height = struct.unpack(">II", data[16:24])
        return (height, width) if 0 < height < 2**31 and 0 < width < 2**31 else None
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return height, width


class _Images:
    def __init__(self, feature: Feature):
        self._declared = feature.shape[:2] if feature.raw else None
        self._ranges = [np.empty((0, 2), np.int64)]
        self._crcs: list[int] = []
        self._sizes: list[tuple[int, int]] = []

    def add(self, record: bytes, base: int, ranges: np.ndarray) -> None:
        size = None
        for start, length in ranges.tolist():
            data = record[start : start + length]
            self._crcs.append(google_crc32c.value(data))
            size = size or self._declared or image_size(data)
        self._sizes.append(size or (0, 0))
        self._ranges.append(ranges + np.array([base, 0]))

    def finish(self) -> Arrays:
        ranges = np.concatenate(self._ranges)
        return {
            "offset": ranges[:, 0].copy(),
            "length": ranges[:, 1].astype(np.int32),
            "crc32c": np.array(self._crcs, np.uint32),
            "size_ehw": np.array(self._sizes, np.int32).reshape(-1, 2),
        }
