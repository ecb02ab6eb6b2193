"""Checksums of the files of a folder that is written once: an index, or standardized episodes."""

import errno
import json
import os
import resource
import socket
from pathlib import Path

import google_crc32c

from imagewam_jax.errors import DataError


def partial_path(path: Path) -> Path:
    """Where `path` is written before it gets its name: beside it, and where no other process
    writes, of this host or of another. In a container every process may have the number 1."""
    return path.with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")


SUMS_FILE = "file_sums.json"
_CHUNK = 2**20


def write_file_checksums(folder: Path) -> None:
    """Of all files that are in it now, into a file beside them."""
    sums = {
        path.relative_to(folder).as_posix(): _crc32c(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / SUMS_FILE).write_text(json.dumps(sums, indent=1))


def damaged_files(folder: Path) -> list[Path]:
    """Those that are missing or other than they were; none where there are no sums."""
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


_WITHOUT_LIMIT = 2**16  # what is asked for where the hard limit is infinite


def allow_open_files() -> None:
    """Raises this process's soft limit, which is 1,024 on most machines and small for a mixture, to
    its hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WITHOUT_LIMIT if hard == resource.RLIM_INFINITY else hard
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_open_files(error: OSError | ValueError) -> None:
    """DataError if that is what an error is about."""
    if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        raise DataError(
            f"{error}: each shard and each array of an index is an open file, and this process may "
            f"have {resource.getrlimit(resource.RLIMIT_NOFILE)[0]} (ulimit -Hn)"
        ) from error
