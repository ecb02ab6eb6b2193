"""The records of a shard in any of the file formats that are read, told apart by content."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from imagewam_jax.data.index.array_record import (
    SIGNATURE,
    array_framing_checksum,
    scan_array_records,
)
from imagewam_jax.data.index.stand_ins import STAND_IN_BYTES, stand_in
from imagewam_jax.data.index.tfrecord import COMPRESSED, Record, framing_checksum
from imagewam_jax.data.index.tfrecord import scan_records as scan_tfrecords
from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import AnyPath, is_remote
from imagewam_jax.storage.ranges import starts

TFRECORD, ARRAY_RECORD = "tfrecord", "array_record"
FILE_FORMATS = (TFRECORD, ARRAY_RECORD)
GET_IT_AGAIN = (
    "get the file again, or move it away and index the others with: imagewam data index "
    "--available-shards"
)


def check_can_be_read(path: AnyPath, found: str) -> None:
    """DataError: the library of a format reads files alone, and `path` is an address."""
    if found == ARRAY_RECORD and is_remote(path):
        raise DataError(
            f"{path}: ArrayRecord, which is read from file systems alone: copy it, mount its "
            "bucket, or convert it to tfrecord (tfds convert_format)"
        )


def file_format(path: AnyPath) -> str:
    """The format of a shard by its first bytes; a file that is nothing else is taken as TFRecord.

    Raises DataError, saying what to do, for a file that stands in for a shard.
    """
    (start,) = starts([path], STAND_IN_BYTES)
    if start.startswith(SIGNATURE):
        check_can_be_read(path, ARRAY_RECORD)
        return ARRAY_RECORD
    if instead := stand_in(start):
        raise DataError(f"{path}: {instead}")
    return TFRECORD


def walk_records(path: AnyPath) -> Iterator[Record]:
    """Yields the records of a shard in order and checks the checksums of each.

    Raises DataError, naming the file and the byte offset, when the file is compressed, is
    truncated, or has bytes that differ from their checksum.
    """
    found = file_format(path)
    for record in scan_array_records(path) if found == ARRAY_RECORD else scan_tfrecords(path):
        if record.damage:
            remedy = "" if COMPRESSED in record.damage else f"; {GET_IT_AGAIN}"
            raise DataError(f"{path}: {record.damage}{remedy}")
        yield record


def scan_records(path: AnyPath) -> Iterator[Record]:
    """Yields all records of a shard, also damaged ones, until no further record can be found."""
    try:
        found = file_format(path)
    except DataError as error:
        yield Record(0, None, str(error).removeprefix(f"{path}: "))
        return
    yield from scan_array_records(path) if found == ARRAY_RECORD else scan_tfrecords(path)


def shard_checksum(
    path: AnyPath,
    found: str,
    offsets: Int64[np.ndarray, " records"],
    lengths: Int64[np.ndarray, " records"],
) -> int:
    """A checksum that differs when a shard of format `found` was replaced, read in little time."""
    if found == ARRAY_RECORD:
        return array_framing_checksum(path, offsets)
    return framing_checksum(path, offsets, lengths)
