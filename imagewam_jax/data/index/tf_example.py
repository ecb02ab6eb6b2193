"""A reader of serialised `tf.train.Example` messages that copies no image.

Wire format: `Example{1: Features{1: repeated entry{1: key, 2: Feature}}}`, where a Feature holds
one of `1: BytesList`, `2: FloatList`, `3: Int64List` and each list is a repeated field 1. Numeric
lists are usually packed into one length-delimited field.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from imagewam_jax.errors import DataError

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_KINDS = {1: "bytes", 2: "float", 3: "int64"}
# A varint has seven bits per byte, so ten bytes hold any 64-bit number.
_MAX_VARINT_BYTES = 10


class ExampleFeature(NamedTuple):
    """The values of one feature.

    kind "bytes": int64 [n, 2], the (start, length) of each value inside the record.
    kind "float": float32 [n]. kind "int64": int64 [n]. kind "empty": no values were written.
    kind "packed int64": int64 [1, 2], the (start, length) of all values, which are not decoded.
    """

    kind: str
    values: np.ndarray


def parse_example(record: bytes, packed: Collection[str] = ()) -> dict[str, ExampleFeature]:
    """Values by feature key of one serialised Example.

    packed: keys whose lists of integers are located and not decoded. Decoded, the pixels of images
      would take eight bytes each.

    Raises DataError, with the byte offset inside the record, for bytes that are not an Example.
    """
    features: dict[str, ExampleFeature] = {}
    for field, start, end in _delimited_fields(record, 0, len(record)):
        if field != 1:
            continue
        for entry_field, entry_start, entry_end in _delimited_fields(record, start, end):
            if entry_field == 1:
                key, feature = _parse_entry(record, entry_start, entry_end, packed)
                features[key] = feature
    return features


def _parse_entry(
    record: bytes, start: int, end: int, packed: Collection[str]
) -> tuple[str, ExampleFeature]:
    key = ""
    feature = ExampleFeature("empty", np.empty(0, np.float32))
    for field, value_start, value_end in _delimited_fields(record, start, end):
        if field == 1:
            try:
                key = record[value_start:value_end].decode()
            except UnicodeDecodeError as error:
                raise DataError(f"byte {value_start}: a key is not UTF-8: {error}") from error
        elif field == 2:
            for list_field, list_start, list_end in _delimited_fields(
                record, value_start, value_end
            ):
                if _KINDS.get(list_field) == "int64" and key in packed:
                    feature = _locate_ints(record, list_start, list_end)
                else:
                    feature = _parse_list(record, list_field, list_start, list_end)
    return key, feature


def _locate_ints(record: bytes, start: int, end: int) -> ExampleFeature:
    runs = [(s, e - s) for _, s, e in _delimited_fields(record, start, end)]
    if not runs and start == end:
        return ExampleFeature("empty", np.empty(0, np.float32))
    if len(runs) != 1:
        raise DataError(f"byte {start}: a list of pixels in {len(runs)} pieces, expected one")
    return ExampleFeature("packed int64", np.array(runs, np.int64))


def cut_ints(record: bytes, start: int, length: int, numbers: int) -> Int64[np.ndarray, "n 2"]:
    """Cuts packed integers into pieces of so many numbers: the (start, length) of each piece.

    Raises DataError when they are not a whole number of pieces.
    """
    raw = np.frombuffer(record, np.uint8, length, start)
    ends = np.flatnonzero(raw < 0x80) + 1
    if len(ends) % numbers or (len(raw) and (not len(ends) or ends[-1] != len(raw))):
        raise DataError(f"byte {start}: {len(ends)} numbers, expected a multiple of {numbers}")
    stops = ends[numbers - 1 :: numbers]
    starts = np.concatenate([[0], stops[:-1]])[: len(stops)]
    return np.stack([start + starts, stops - starts], 1).astype(np.int64)


def _parse_list(record: bytes, field: int, start: int, end: int) -> ExampleFeature:
    kind = _KINDS.get(field)
    if kind == "bytes":
        ranges = [(s, e - s) for _, s, e in _delimited_fields(record, start, end)]
        return ExampleFeature(kind, np.array(ranges, np.int64).reshape(-1, 2))
    if kind == "float":
        return ExampleFeature(kind, _parse_floats(record, start, end))
    if kind == "int64":
        return ExampleFeature(kind, _parse_ints(record, start, end))
    raise DataError(f"byte {start}: a feature holds list number {field}, expected 1, 2 or 3")


def _parse_floats(record: bytes, start: int, end: int) -> np.ndarray:
    parts = []
    while start < end:
        tag, start = _varint(record, start, end)
        if tag & 7 == _LENGTH_DELIMITED:
            length, start = _varint(record, start, end)
        elif tag & 7 == _FIXED32:
            length = 4
        else:
            raise DataError(f"byte {start}: wire type {tag & 7} in a float list")
        _check_inside(start, length, end)
        if length % 4:
            raise DataError(f"byte {start}: {length} bytes are not whole float32 values")
        parts.append(np.frombuffer(record, "<f4", length // 4, start))
        start += length
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, np.float32)


def _parse_ints(record: bytes, start: int, end: int) -> np.ndarray:
    parts = []
    while start < end:
        tag, start = _varint(record, start, end)
        if tag & 7 == _LENGTH_DELIMITED:
            length, start = _varint(record, start, end)
            _check_inside(start, length, end)
        elif tag & 7 == _VARINT:
            length = _varint(record, start, end)[1] - start
        else:
            raise DataError(f"byte {start}: wire type {tag & 7} in an int64 list")
        parts.append(_decode_varints(record, start, length))
        start += length
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _decode_varints(record: bytes, start: int, length: int) -> np.ndarray:
    """int64 [n] from n varints, which hold seven bits per byte, least significant first."""
    raw = np.frombuffer(record, np.uint8, length, start)
    last = np.flatnonzero(raw < 0x80)
    if len(raw) and (not len(last) or last[-1] != len(raw) - 1):
        raise DataError(f"byte {start}: a packed int64 list ends inside a number")
    if len(last) == len(raw):
        return raw.astype(np.int64)
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    if digits.max() > _MAX_VARINT_BYTES:
        raise DataError(f"byte {start}: a number of {digits.max()} bytes in an int64 list")
    place = np.arange(len(raw)) - np.repeat(first, digits)
    bits = (raw & 0x7F).astype(np.uint64) << (7 * place).astype(np.uint64)
    return np.add.reduceat(bits, first).view(np.int64)


def _delimited_fields(record: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields (field number, value start, value end) of a message's length-delimited fields."""
    while start < end:
        tag, start = _varint(record, start, end)
        wire_type = tag & 7
        if wire_type == _LENGTH_DELIMITED:
            length, start = _varint(record, start, end)
            _check_inside(start, length, end)
            yield tag >> 3, start, start + length
            start += length
        elif wire_type == _VARINT:
            _, start = _varint(record, start, end)
        elif wire_type in (_FIXED32, _FIXED64):
            length = 4 if wire_type == _FIXED32 else 8
            _check_inside(start, length, end)
            start += length
        else:
            raise DataError(f"byte {start}: wire type {wire_type} is not a tf.train.Example")


def _varint(record: bytes, start: int, end: int) -> tuple[int, int]:
    """The unsigned varint at `start` and the position after it."""
    if start < end and record[start] < 0x80:
        return record[start], start + 1
    value = shift = 0
    stop = min(end, start + _MAX_VARINT_BYTES)
    while start < stop:
        byte = record[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7
    what = "is cut off" if start == end else f"has more than {_MAX_VARINT_BYTES} bytes"
    raise DataError(f"byte {start}: a number {what}; not a tf.train.Example")


def _check_inside(start: int, length: int, end: int) -> None:
    if start + length > end:
        raise DataError(
            f"byte {start}: a field of {length} bytes exceeds its message, which ends at {end}"
        )
