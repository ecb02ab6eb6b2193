"""Reads ArrayRecord files, in which TFDS keeps records too: by number, each with its checksum.

An ArrayRecord file is a Riegeli file with a list of its chunks at the end. A chunk holds one record
or a group of them, compressed, behind a header of 40 bytes: a hash of the rest of the header, the
size of the data, a hash of the data, the chunk's type and number of records, and the size of the
data when decompressed. Every 64 KiB of the file begin with a block header of 24 bytes, also in the
middle of a chunk. The library reads records; where the chunks lie is worked out here, because the
hashes in their headers pin the content of the file without reading it.

Sources: the library `array_record`; the repository google/riegeli, doc/riegeli_records_file_format.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np
from array_record.python import array_record_module
from jaxtyping import Int64

from imagewam_jax.data.index.tfrecord import Record
from imagewam_jax.files import check_open_files

# The block header and the header of the empty chunk with which every Riegeli file begins.
SIGNATURE = bytes.fromhex(
    "83af70d10d884a3f0000000000000000400000000000000091bac23c9287e1a9"
    "0000000000000000e19f13c0e9b1c3727300000000000000"
)
_FIRST_CHUNK = 64
_BLOCK, _BLOCK_HEADER, _CHUNK_HEADER = 2**16, 24, 40
_USABLE = _BLOCK - _BLOCK_HEADER
_PADDING = ord("p")


class ArrayRecordFile:
    """Records of one file by number. Safe to use from threads.

    Raises OSError when the file cannot be opened or is not whole; the library's own message is in
    it.
    """

    def __init__(self, path: Path):
        # The library opens a missing file as an empty one.
        os.stat(path)
        self._reader = array_record_module.ArrayRecordReader(
            os.fspath(path), options="readahead_buffer_size:0", file_reader_buffer_size=2**15
        )
        if not self._reader.ok():
            try:
                self._reader.close()
            except RuntimeError as error:
                raise self._explain(error) from error

    def __len__(self) -> int:
        return self._reader.num_records()

    def read(self, number: int) -> bytes:
        """The data of one record. OSError: its chunk differs from its checksum, or is cut off."""
        try:
            return self._reader.read([number])[0]
        except RuntimeError as error:
            raise self._explain(error) from error

    def close(self) -> None:
        self._reader.close()

    @staticmethod
    def _explain(error: RuntimeError) -> OSError:
        explained = OSError(str(error).removesuffix("; Failed to read RiegeliPostscript"))
        if "Too many open files" in str(error):
            check_open_files(OSError(24, str(error)))
        return explained


def scan_array_records(path: Path) -> Iterator[Record]:
    """Yields all records of a file, also damaged ones; none can be found in a truncated file.

    The offset of a record is that of its chunk; its data lie nowhere in the file as they are.
    """
    try:
        file = ArrayRecordFile(path)
        chunks = chunk_offsets(path, len(file))
    except OSError as error:
        yield Record(0, None, f"not a whole ArrayRecord file: {error}")
        return
    for number, offset in enumerate(chunks):
        try:
            yield Record(offset, file.read(number), base=0)
        except OSError as error:
            yield Record(offset, b"", f"record {number} cannot be read: {error}", base=0)
    file.close()


def chunk_offsets(path: Path, records: int) -> list[int]:
    """Where the chunk of each of the file's records begins. OSError: the file ends before."""
    offsets: list[int] = []
    with open(path, "rb", buffering=0) as file:
        begin = _FIRST_CHUNK
        while len(offsets) < records:
            header = _chunk_header(file.fileno(), begin)
            if len(header) < _CHUNK_HEADER:
                raise OSError(f"{len(offsets)} of {records} records before the file ends")
            _, size, _, kind_and_number, _ = struct.unpack("<5Q", header)
            kind, number = kind_and_number & 0xFF, kind_and_number >> 8
            if kind != _PADDING:
                offsets += [begin] * number
            begin = _chunk_end(begin, size, number)
    return offsets


def _chunk_header(file: int, begin: int) -> bytes:
    """The 40 bytes of a chunk's header, without a block header between them."""
    data = os.pread(file, _CHUNK_HEADER + _BLOCK_HEADER, begin)
    if begin % _BLOCK == 0:
        return data[_BLOCK_HEADER:]
    here = _BLOCK - begin % _BLOCK
    return (data[:here] + data[here + _BLOCK_HEADER :])[:_CHUNK_HEADER]


def _chunk_end(begin: int, size: int, number: int) -> int:
    length = _CHUNK_HEADER + size
    blocks = (length + (begin + _USABLE - 1) % _BLOCK) // _USABLE
    end = begin + length + blocks * _BLOCK_HEADER
    # A chunk takes a byte per record at least, and the next one does not begin in a block header.
    least = begin + number
    return max(end, least + max(0, -least % _BLOCK - (_USABLE - 1)))


def array_framing_checksum(path: Path, offsets: Int64[np.ndarray, " records"]) -> int:
    """CRC-32C over the headers of the chunks at `offsets`, which hold hashes of all their data."""
    with open(path, "rb", buffering=0) as file:
        crc = google_crc32c.value(os.pread(file.fileno(), _FIRST_CHUNK, 0))
        for offset in np.unique(offsets).tolist():
            crc = google_crc32c.extend(crc, _chunk_header(file.fileno(), offset))
    return crc
