"""Data in object storage: addresses (`gs://`, `s3://`) as paths, and ranges of objects' bytes.

TensorStore, which checkpoints are read with, does all of it: it looks for credentials where
Google's and Amazon's own tools do and reads public buckets without any, keeps many requests under
way, and tries again, ever later, where one fails. What uses a dataset sees a path with pathlib's
methods, `ObjectPath`.
"""

import dataclasses
import functools
import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

import tensorstore as ts

from imagewam_jax.errors import DataError
from imagewam_jax.paths import in_home

CONCURRENT_READS = 64  # requests at a time, by default
_DRIVERS = {"gs": "gcs", "s3": "s3"}
# A request is given up after some two minutes.
_RETRIES = {"max_retries": 8, "initial_delay": "500ms", "max_delay": "32s"}
_CHUNK, _CHUNKS_AHEAD = 2**23, 4  # of an object that is read from its start to its end
_NO_GENERATION = b"\0" * 9  # of an answer that names none


@dataclasses.dataclass(frozen=True, order=True)
class ObjectPath:
    """The address of an object, or of a folder: of all objects whose names begin with its own.

    Its methods are those of pathlib. DataError: the storage refuses, or cannot be reached.
    """

    scheme: str
    bucket: str
    key: PurePosixPath

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{'' if self._is_root else self.key}"

    def __truediv__(self, other: str) -> "ObjectPath":
        return dataclasses.replace(self, key=self.key / other)

    @property
    def _is_root(self) -> bool:
        return not self.key.parts

    @property
    def name(self) -> str:
        return self.bucket if self._is_root else self.key.name

    @property
    def parent(self) -> "ObjectPath":
        return dataclasses.replace(self, key=self.key.parent)

    def absolute(self) -> "ObjectPath":
        return self

    resolve = absolute

    def is_symlink(self) -> bool:
        return False

    def is_file(self) -> bool:
        return not self._is_root and bool(generations([self])[0])

    def is_dir(self) -> bool:
        return bool(self._below())

    def iterdir(self) -> Iterator["ObjectPath"]:
        names = {below.partition("/")[0] for below in self._below()}
        return (self / name for name in sorted(names - {""}))

    def glob(self, pattern: str) -> Iterator["ObjectPath"]:
        found = (self / below for below in self._below() if PurePosixPath(below).match(pattern))
        depth = len(self.key.parts) + pattern.count("/") + 1
        return (path for path in found if len(path.key.parts) == depth)

    def read_text(self, encoding: str = "utf-8") -> str:
        return _object(self).decode(encoding)

    def _below(self) -> list[str]:
        """The rest of the names of all objects in this folder."""
        prefix = "" if self._is_root else f"{self.key}/"
        # "0" comes after "/".
        span = ts.KvStore.KeyRange(prefix, prefix[:-1] + "0" if prefix else "")
        listed = _bucket(self, CONCURRENT_READS).list(span)
        names = [name.decode() for name in _result(listed, f"{self}: cannot be listed")]
        # Stripped here: TensorStore ends the process where a storage lists names of other folders.
        return sorted(name[len(prefix) :] for name in names if name.startswith(prefix))


AnyPath = Path | ObjectPath


def as_path(place: str | os.PathLike | ObjectPath) -> AnyPath:
    """The path or address that a user gave: `gs://bucket/name`, `s3://bucket/name`, `file:///name`,
    or a path. DataError: it is an address of another kind. ConfigError: ~ is nobody's."""
    if isinstance(place, ObjectPath):
        return place
    text = os.fspath(place)
    scheme, is_address, rest = text.partition("://")
    if not is_address:
        return Path(in_home(text))
    if scheme == "file":
        return Path(rest)
    if scheme not in _DRIVERS:
        known = ", ".join(f"{name}://" for name in (*_DRIVERS, "file"))
        raise DataError(f"{text}: an address of another kind than {known}; mount it, or copy it")
    bucket, _, key = rest.partition("/")
    return ObjectPath(scheme, bucket, PurePosixPath(key.strip("/")))


def is_remote(path: AnyPath) -> bool:
    """Whether a path is an address of an object or of a folder of them."""
    return isinstance(path, ObjectPath)


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
        store = _bucket(wanted.path, concurrent)
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
        except _EndsBefore:
            found.append(_object(path))
    return found


def generations(paths: Sequence[ObjectPath]) -> list[str]:
    """What tells the content of each object from all that is written in its place; "" where there
    is no object. DataError: the storage refuses to say it."""
    futures = [
        _bucket(path, CONCURRENT_READS).read(str(path.key), byte_range=slice(0, 0))
        for path in paths
    ]
    found = [_result(*one) for one in zip(futures, map(str, paths), strict=True)]
    return ["" if r.state == "missing" else r.stamp.generation.hex() for r in found]


def state(path: AnyPath) -> list[int | str]:
    """What changes when a file or object is written again; as JSON has it."""
    if is_remote(path):
        return generations([path])
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def retries() -> int:
    """How many requests of this process failed and were sent again."""
    found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/")
    values = [m["values"] for m in found if m["name"].endswith("/retries")]
    return sum(value.get("value", 0) for listed in values for value in listed)


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
        except _EndsBefore as error:
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
        except _EndsBefore as error:
            many, said = middle, str(error)
    return few


class _EndsBefore(DataError):
    """An object ends before a range of it does."""


def _object(path: ObjectPath) -> bytes:
    """All of an object. DataError: it is not there, or cannot be read."""
    future = _bucket(path, CONCURRENT_READS).read(str(path.key))
    return _value(_result(future, f"{path}: cannot be read"), path)


def _finish(future: ts.Future, wanted: Range) -> bytes:
    found = _result(future, f"{wanted}: cannot be read")
    now = found.stamp.generation
    expected = {wanted.generation, _NO_GENERATION.hex()}
    if found.state == "value" and wanted.generation and now.hex() not in expected:
        raise DataError(f"{wanted.path}: was written anew since it was opened")
    return _value(found, wanted.path)


def _value(found: ts.KvStore.ReadResult, path: ObjectPath) -> bytes:
    if found.state == "missing":
        raise DataError(f"{path}: there is no such object, or no longer")
    return found.value


# What TensorStore answers where a range begins at the end of an object, or ends behind it.
_BEYOND = re.compile("OUT_OF_RANGE|Unexpected Content-Range")


def _result(future: ts.Future, what: str) -> Any:
    try:
        return future.result()
    except Exception as error:  # TensorStore has a type of Python's for each kind of failure
        kind = _EndsBefore if _BEYOND.search(str(error)) else DataError
        raise kind(f"{what}: {' '.join(str(error).split())}") from error


def _bucket(path: ObjectPath, concurrent: int) -> ts.KvStore:
    return _open_bucket(_DRIVERS[path.scheme], path.bucket, concurrent)


@functools.cache
def _open_bucket(driver: str, bucket: str, concurrent: int) -> ts.KvStore:
    context = _context(concurrent)
    try:
        return ts.KvStore.open({"driver": driver, "bucket": bucket}, context=context).result()
    except ValueError as error:
        raise DataError(f"the bucket {bucket!r}: {' '.join(str(error).split())}") from error


@functools.cache
def _context(concurrent: int) -> ts.Context:
    if concurrent < 1:
        raise DataError(f"data.concurrent_reads is {concurrent}, expected 1 or more")
    limits = {f"{driver}_request_concurrency": {"limit": concurrent} for driver in ("gcs", "s3")}
    retries = {f"{driver}_request_retries": _RETRIES for driver in ("gcs", "s3")}
    return ts.Context(limits | retries)
