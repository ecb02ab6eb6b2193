"""TFRecord framing: the records of an uncompressed shard, with their checksums.

A record is `length: u64 | masked crc32c(length): u32 | data | masked crc32c(data): u32`, all
little-endian.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import google_crc32c
import numpy as np
from jaxtyping import Int64

from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import AnyPath
from imagewam_jax.storage.ranges import open_to_read, read_ranges

HEADER_BYTES = 12
FOOTER_BYTES = 4
_PIECE = 2**26
COMPRESSED = (
    "-compressed; a byte index needs uncompressed TFRecord files: decompress every "
    "shard and keep its name (gzip -dc, zlib-flate -uncompress)"
)
_COMPRESSED_MAGIC = {b"\x1f\x8b": "gzip", b"\x78\x9c": "zlib", b"\x78\x01": "zlib"}


class Record(NamedTuple):
    """One record: the byte position of its data in the file, and the data.

    damage: what is wrong with it; "" when its checksums hold. `data` is None when the record's
    length is unknown; then the records after it cannot be found.
    base: the position in the file to which offsets of images are added; 0 where records are
    compressed, so that images have positions in their record alone.
    """

    offset: int
    data: bytes | None
    damage: str = ""
    base: int = 0


def masked_crc32c(data: bytes) -> int:
    """The rotated and shifted CRC-32C that TFRecord files store."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def walk_records(path: AnyPath) -> Iterator[Record]:
    """Yields the records of a shard in order and checks both checksums of each.

    Raises DataError, naming the file and the byte offset, when the file is compressed, is
    truncated, or has bytes that differ from their checksum.
    """
    for record in scan_records(path):
        if record.damage:
            raise DataError(f"{path}: {record.damage}")
        yield record


def scan_records(path: AnyPath) -> Iterator[Record]:
    """Yields all records of a shard, also damaged ones, until no further record can be found."""
    with open_to_read(path) as file:
        offset = 0
        while header := file.read(HEADER_BYTES):
            start = offset + HEADER_BYTES
            if len(header) < HEADER_BYTES:
                where = f"truncated at byte {offset + len(header)}: the record at byte {offset}"
                yield _lost(start, f"{where} has {len(header)} of {HEADER_BYTES} header bytes")
                return
            length, length_crc = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != length_crc:
                compression = _COMPRESSED_MAGIC.get(header[:2]) if offset == 0 else None
                yield _lost(
                    start,
                    f"{compression}{COMPRESSED}"
                    if compression
                    else f"the record length at byte {offset} differs from its checksum",
                )
                return
            data, footer = _read(file, length), file.read(FOOTER_BYTES)
            end = start + length
            if len(footer) < FOOTER_BYTES:
                where = f"the record at byte {offset} ends at {end + FOOTER_BYTES}"
                there = start + len(data) + len(footer)
                yield _lost(start, f"truncated at byte {there}: {where}")
                return
            (data_crc,) = struct.unpack("<I", footer)
            damage = ""
            if masked_crc32c(data) != data_crc:
                where = f"the record at byte {offset}"
                damage = f"the {length} data bytes of {where} differ from their checksum"
            yield Record(start, data, damage, base=start)
            offset = end + FOOTER_BYTES


def _read(file: BinaryIO, length: int) -> bytes:
    """As many bytes, or those that are left: a wrong length may be more than memory holds."""
    pieces = []
    while length and (piece := file.read(min(length, _PIECE))):
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def _lost(offset: int, damage: str) -> Record:
    return Record(offset, None, damage)


def framing_checksum(
    path: AnyPath, offsets: Int64[np.ndarray, " records"], lengths: Int64[np.ndarray, " records"]
) -> int:
    """CRC-32C over every record's header and footer, without reading the data between them.

    The footers hold the CRCs of the data, so a shard that was replaced under the same name differs
    even when all sizes agree. `offsets` and `lengths` locate the records' data.
    """
    ends = (offsets + lengths).tolist()
    spans = [(0, HEADER_BYTES), *((end, FOOTER_BYTES + HEADER_BYTES) for end in ends[:-1])]
    spans += [(end, FOOTER_BYTES) for end in ends[-1:]]
    return google_crc32c.value(b"".join(read_ranges(path, spans)))
