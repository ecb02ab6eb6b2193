"""Addresses of objects (`gs://`, `s3://`) as paths, and whole objects.

TensorStore, which checkpoints are read with, does all of it: it looks for credentials where
Google's and Amazon's own tools do and reads public buckets without any, keeps many requests under
way, and tries again, ever later, where one fails. What uses a dataset or a run sees a path with
pathlib's methods, `ObjectPath`.
"""

import dataclasses
import functools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import tensorstore as ts

from imagewam_jax.errors import DataError
from imagewam_jax.paths import in_home

CONCURRENT_READS = 64  # requests at a time, by default
_DRIVERS = {"gs": "gcs", "s3": "s3"}
# A request is given up after some two minutes.
_RETRIES = {"max_retries": 8, "initial_delay": "500ms", "max_delay": "32s"}


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

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

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

    def read_bytes(self) -> bytes:
        found = result_of(bucket_of(self).read(str(self.key)), f"{self}: cannot be read")
        return value_of(found, self)

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> None:
        """Writes the object, whole or not at all, in place of what has its name."""
        result_of(bucket_of(self).write(str(self.key), content), f"{self}: cannot be written")

    def write_text(self, content: str) -> None:
        self.write_bytes(content.encode())

    def unlink(self) -> None:
        """Removes the object, if it is there."""
        result_of(bucket_of(self).write(str(self.key), None), f"{self}: cannot be removed")

    def objects(self) -> list[str]:
        """The names below this one of all objects in this folder and in those within."""
        return [below for below in self._below() if below and not below.endswith("/")]

    def _below(self) -> list[str]:
        """The rest of the names of all objects in this folder."""
        prefix = "" if self._is_root else f"{self.key}/"
        # "0" comes after "/".
        span = ts.KvStore.KeyRange(prefix, prefix[:-1] + "0" if prefix else "")
        listed = bucket_of(self).list(span)
        names = [name.decode() for name in result_of(listed, f"{self}: cannot be listed")]
        if not names:  # which is also what TensorStore finds where listing is not allowed
            refused = bucket_of(self).read(prefix or "any", byte_range=slice(0, 0))
            result_of(refused, f"{self}: cannot be listed")
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


def kvstore_spec(folder: AnyPath) -> dict[str, str]:
    """What TensorStore opens a folder of files or objects with."""
    if not is_remote(folder):
        return {"driver": "file", "path": f"{folder}/"}
    return {"driver": _DRIVERS[folder.scheme], "bucket": folder.bucket, "path": f"{folder.key}/"}


def is_remote(path: AnyPath) -> bool:
    """Whether a path is an address of an object or of a folder of them."""
    return isinstance(path, ObjectPath)


def generations(paths: Sequence[ObjectPath]) -> list[str]:
    """What tells the content of each object from all that is written in its place; "" where there
    is no object. DataError: the storage refuses to say it."""
    futures = [bucket_of(path).read(str(path.key), byte_range=slice(0, 0)) for path in paths]
    found = [result_of(*one) for one in zip(futures, map(str, paths), strict=True)]
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


def value_of(found: ts.KvStore.ReadResult, path: ObjectPath) -> bytes:
    """The bytes of an answer. DataError: there is no object."""
    if found.state == "missing":
        raise DataError(f"{path}: there is no such object, or no longer")
    return found.value


class EndsBefore(DataError):
    """An object ends before a range of it does."""


# What TensorStore answers where a range begins at the end of an object, or ends behind it.
_BEYOND = re.compile("OUT_OF_RANGE|Unexpected Content-Range")


def result_of(future: ts.Future, what: str) -> Any:
    """What a request found. DataError, which begins with `what`: it failed; EndsBefore: the object
    is shorter."""
    try:
        return future.result()
    except Exception as error:  # TensorStore has a type of Python's for each kind of failure
        kind = EndsBefore if _BEYOND.search(str(error)) else DataError
        raise kind(f"{what}: {' '.join(str(error).split())}") from error


def bucket_of(path: ObjectPath, concurrent: int = CONCURRENT_READS) -> ts.KvStore:
    """The bucket of an object, with so many requests at a time."""
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
