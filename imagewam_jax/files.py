"""Files that appear whole and that one process writes, checksums of a folder, streamed safetensors,
limits on open files."""

import contextlib
import errno
import fcntl
import json
import math
import os
import resource
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from io import RawIOBase
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import ml_dtypes
import numpy as np

from imagewam_jax.errors import DISK_FULL, DataError, InUseError, WriteError


def partial_path(path: Path) -> Path:
    """Where `path` is written before it gets its name: beside it, and where no other process
    writes, of this host or of another. In a container every process may have the number 1."""
    return path.with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which gets its name at the end, and is removed after an error.

    The folder is made if it is not there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """WriteError, which names `path` and says what to do, for an error of the system within."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error}{space_advice(error)}") from error


def space_advice(error: OSError) -> str:
    """What to do about an error of writing, as the end of a message: nothing but if a disk is
    full."""
    return "; free some space there" if error.errno in DISK_FULL else ""


LOCK_FILE = ".lock"  # in the folder that it is of


def lock_beside(path: Path) -> Path:
    """The lock of a file, or of a folder that is replaced as a whole."""
    return path.with_name(f".{path.name}{LOCK_FILE}")


# File systems without locks: some network file systems, by how they are mounted.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def only_writer(lock: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Holds a lock file, which is made for it, while this process is `what`.

    It is a lock of the system (flock), which ends with its process, however that ends; over NFS it
    also keeps other hosts out. InUseError names the process that holds it; with `wait`, this one
    waits instead. WriteError: the file cannot be made. On a file system without locks it says so on
    stderr and keeps nobody out.
    """
    made = [path for path in lock.parents if not path.exists()]
    with contextlib.ExitStack() as stack:
        with writing(lock):
            file = stack.enter_context(_locked(lock, what, wait))
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        holder = f"process {os.getpid()} on {socket.gethostname()} ({what}, since {now})"
        with contextlib.suppress(OSError):  # a lock on a full disk names nobody
            file.truncate(0)
            file.write(holder.encode())
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # what was written there stays
                for path in made:
                    path.rmdir()


def _locked(lock: Path, what: str, wait: bool) -> RawIOBase:
    """The open lock file, locked; closing it ends the lock."""
    while True:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(lock.open("ab+", buffering=0))
            _lock(file, lock, what, wait)
            # The process that held it may have removed the file that was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    stack.pop_all()
                    return file


def _lock(file: RawIOBase, lock: Path, what: str, wait: bool) -> None:
    beside = lock.name[1:].removesuffix(LOCK_FILE)
    path = lock.parent if lock.name == LOCK_FILE else lock.with_name(beside)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode() or "another process"
            if not wait:
                raise InUseError(
                    f"{path} is in use by {holder}: wait for its end, or choose another place"
                ) from None
            print(f"{what}: waits for {holder}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(
            f"{path}: its file system has no locks ({error}); nothing keeps a second process from "
            "writing it",
            file=sys.stderr,
        )


# The dtypes of safetensors files, by their names there.
SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_SAFETENSORS_NAMES = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}


def stream_safetensors(
    file: BinaryIO,
    tensors: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    pieces: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a safetensors file whose tensors are not in memory together.

    The library's own `save_file` wants them all. The format is small: the length of a JSON header
    as 8 bytes, the header, and the tensors back to back as it lists them.

    tensors: name -> (shape, dtype), in the order in which they are written.
    pieces: the numbers of all tensors, one after another. The caller sees to it that they are as
        many as `tensors` says.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, (shape, dtype) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the tensors are aligned
    file.write(len(encoded).to_bytes(8, "little") + encoded)
    for piece in pieces:
        file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)


SUMS_FILE = "file_sums.json"
_CHUNK = 2**20


def write_file_checksums(folder: Path) -> None:
    """Writes the checksums of all files in a folder into a file beside them."""
    sums = {
        path.relative_to(folder).as_posix(): _crc32c(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / SUMS_FILE).write_text(json.dumps(sums, indent=1))


def damaged_files(folder: Path) -> list[Path]:
    """The files that are missing or have changed since; none where no checksums were written."""
    if not (folder / SUMS_FILE).is_file():
        return []
    try:
        sums = json.loads((folder / SUMS_FILE).read_text())
    except ValueError:
        return [folder / SUMS_FILE]
    return [folder / name for name, value in sums.items() if _crc32c(folder / name) != value]


def _crc32c(path: Path) -> int | None:
    if not path.is_file():
        return None
    found = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found = google_crc32c.extend(found, chunk)
    return found


_MAY_NOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS)


def elsewhere(error: OSError) -> str:
    """How what lies beside a dataset is written elsewhere, when an error says that it must be."""
    if error.errno not in _MAY_NOT_WRITE:
        return ""
    return (
        "; give another folder than the dataset's: data.index_directory of a config, or --output "
        "of imagewam data index"
    )


_WITHOUT_LIMIT = 2**16  # what is asked for where the hard limit is infinite


def allow_open_files() -> None:
    """Raises this process's soft limit on open files to its hard one.

    On most machines the soft limit is 1,024, which is small for a mixture of datasets.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WITHOUT_LIMIT if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_open_files(error: OSError | ValueError) -> None:
    """Raises DataError, which names the limit, if an error says that too many files are open."""
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        raise DataError(
            f"{error}: each shard and each array of an index is an open file, and this process may "
            f"have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} (ulimit -Hn)"
        ) from error
