"""Ranges of the bytes of files and objects, and objects from their start to their end."""

import functools
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, BinaryIO, NamedTuple

import tensorstore as ts

from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import (
    CONCURRENT_READS,
    AnyPath,
    EndsBefore,
    ObjectPath,
    bucket_of,
    generations,
    is_remote,
    result_of,
    value_of,
)

_CHUNK, _CHUNKS_AHEAD = 2**23, 4  # of an object that is read from its start to its end
_NO_GENERATION = b"\0" * 9  # of an answer that names none


class Range(NamedTuple):
    """Some bytes of an object; `generation` is what it is to be, where that is known."""

    path: ObjectPath
    offset: int
    length: int
    generation: str = ""

    def __str__(self) -> str:
        return f"{self.path}, bytes {self.offset} to {self.offset + self.length}"


def start_reading(
    ranges: Iterable[Range], concurrent: int = CONCURRENT_READS
) -> list[Callable[[], bytes]]:
    """Begins to read ranges of objects, all at once, and returns for each a function that waits for
    its bytes.

    concurrent: requests at a time, of all that this process reads. Ranges of an object that lie
    close together are read by one request. DataError, from the functions: an object is not there,
    is another than `generation`, ends before the range does, or cannot be read.
    """
    batch = ts.Batch()
    started = []
    for wanted in ranges:
        span = slice(wanted.offset, wanted.offset + wanted.length)
        store = bucket_of(wanted.path, concurrent)
        future = store.read(str(wanted.path.key), byte_range=span, batch=batch)
        started.append(functools.partial(_finish, future, wanted))
    batch.submit()
    return started


def read_ranges(path: AnyPath, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of spans (offset, length) of a file, fewer where it ends before, or of an object.

    DataError: the object ends before a span does, or cannot be read.
    """
    if is_remote(path):
        return [read() for read in start_reading(Range(path, *span) for span in spans)]
    with open(path, "rb", buffering=0) as file:
        return [os.pread(file.fileno(), length, offset) for offset, length in spans]


def starts(paths: Sequence[AnyPath], length: int) -> list[bytes]:
    """The first bytes of files or objects that are there; of objects, all at once."""
    if not all(map(is_remote, paths)):
        return [read_ranges(path, [(0, length)])[0] for path in paths]
    reads = start_reading(Range(path, 0, length) for path in paths)
    found = []
    for path, read in zip(paths, reads, strict=True):
        try:
            found.append(read())
        except EndsBefore:
            found.append(path.read_bytes())
    return found


def open_to_read(path: AnyPath) -> BinaryIO:
    """A file or object that is read from its start to its end."""
    if is_remote(path):
        return io.BufferedReader(_ObjectFile(path), buffer_size=2**20)
    return open(path, "rb")


class _ObjectFile(io.RawIOBase):
    """An object from its start to its end, some chunks of which are read ahead.

    Where the end is shows when a chunk reaches beyond it.
    """

    def __init__(self, path: ObjectPath):
        self._path, (self._generation,) = path, generations([path])
        self._next = 0
        self._ahead: list[tuple[int, Callable[[], bytes]]] = []
        self._data = memoryview(b"")
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._data and not self._ended:
            self._data = memoryview(self._chunk())
        count = min(len(buffer), len(self._data))
        buffer[:count], self._data = self._data[:count], self._data[count:]
        return count

    def _chunk(self) -> bytes:
        offsets = range(
            self._next, self._next + _CHUNK * (_CHUNKS_AHEAD - len(self._ahead)), _CHUNK
        )
        ranges = [Range(self._path, offset, _CHUNK, self._generation) for offset in offsets]
        self._ahead += zip(offsets, start_reading(ranges), strict=True)
        self._next = offsets.stop
        offset, read = self._ahead.pop(0)
        try:
            return read()
        except EndsBefore as error:
            self._ended = True
            length = _length_before_the_end(self._path, offset, str(error))
        last = Range(self._path, offset, length, self._generation)
        return start_reading([last])[0]() if length else b""


def _length_before_the_end(path: ObjectPath, offset: int, said: str) -> int:
    """How many bytes of a chunk at `offset` an object has that ends in it; `said` is the error of
    reading the whole chunk, which most storages tell the object's size in."""
    few, many = 0, _CHUNK
    while many - few > 1:
        if size := re.search(r"(?:total size |bytes \d+-\d+/)(\d+)", said):
            return max(0, int(size[1]) - offset)
        middle = (few + many) // 2
        try:
            read_ranges(path, [(offset + middle - 1, 1)])
            few = middle
        except EndsBefore as error:
            many, said = middle, str(error)
    return few


def _finish(future: ts.Future, wanted: Range) -> bytes:
    found = result_of(future, f"{wanted}: cannot be read")
    now = found.stamp.generation
    expected = {wanted.generation, _NO_GENERATION.hex()}
    if found.state == "value" and wanted.generation and now.hex() not in expected:
        raise DataError(f"{wanted.path}: was written anew since it was opened")
    return value_of(found, wanted.path)
