"""Checksums of the files of a folder that is written once: of an index, or of a standard form."""

import json
from pathlib import Path

import google_crc32c

SUMS_FILE = "file_sums.json"
_CHUNK = 2**20


def write_file_sums(folder: Path) -> None:
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
