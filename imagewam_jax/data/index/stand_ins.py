"""Tells what lies in the place of a file of a dataset that was not, or not wholly, downloaded."""

from imagewam_jax.storage.objects import AnyPath
from imagewam_jax.storage.ranges import starts

_PULL = "get it with `git lfs pull` in its folder, or download the dataset again"
_AGAIN = "download it again"
STAND_IN_BYTES = 64  # of the start of a file, enough to tell


def stand_in(start: bytes) -> str:
    """What a file is that begins with these bytes instead of data, and what to do.

    "" when it may be data. The bytes of a TFRecord file can hardly be mistaken: its first eight are
    the length of a record.
    """
    if start.startswith(b"version https://"):
        return f"a Git-LFS pointer, not the file itself; {_PULL}"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return f"a web page, not the file itself; {_AGAIN}"
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive; unpack it (unzip)"
    if len(start) >= 32 and not start.strip(b"\0"):
        return f"zeros, as an interrupted download leaves it; {_AGAIN}"
    return ""


def file_stand_in(path: AnyPath) -> str:
    """The same for an existing file; also a link to nothing."""
    if path.is_symlink() and not path.exists():
        return f"a link to {path.readlink()}, which is not there; {_AGAIN}"
    return stand_in(*starts([path], STAND_IN_BYTES))
