"""An index in object storage: a copy on this machine is mapped into memory."""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from imagewam_jax.data.index.dataset_index import META_FILE
from imagewam_jax.data.index.shard_parts import PARTS_DIR
from imagewam_jax.errors import DataError
from imagewam_jax.files import lock_beside, only_writer, written_whole
from imagewam_jax.storage.folders import copy_of, fetch
from imagewam_jax.storage.objects import AnyPath, ObjectPath, generations, is_remote


@contextlib.contextmanager
def index_here(place: AnyPath) -> Iterator[Path]:
    """The folder of an index as one of this machine: `place` itself, or if that is an address a
    copy of what lies there. What is added within lies there, too, at the end.

    Only what differs is copied, and a new index is there when it is complete. Where the address
    cannot be written to, a line says so, and the copy serves all the same. Processes of this
    machine wait for each other. DataError: what lies there cannot be read.
    """
    if not is_remote(place):
        yield place
        return
    here = copy_of(place)
    known = here.with_name(f"{here.name}.objects.json")
    with only_writer(lock_beside(known), f"the copy of {place}", wait=True):
        _fetch(place, here, known)
        before = _files(here)
        try:
            yield here
        except DataError as error:  # what it says to do is to be done at the address
            raise type(error)(str(error).replace(str(here), str(place))) from error
        changed = [name for name, state in _files(here).items() if before.get(name) != state]
        try:
            _keep(place, here, changed)
        except DataError as error:
            print(f"{error}; the index is in {here} alone", file=sys.stderr)
        else:
            _remember(known, _known(known) | _generations(place, changed))


def _fetch(place: ObjectPath, here: Path, known: Path) -> None:
    """Copies the objects that are others than those that were copied before."""
    before, now = _known(known), _generations(place, place.objects())
    for name, generation in now.items():
        if before.get(name) != generation or not (here / name).is_file():
            fetch(place / name, here / name)
    if now:
        _remember(known, now)


def _keep(place: ObjectPath, here: Path, changed: list[str]) -> None:
    """Copies files to their addresses, the one that makes an index complete last."""
    if META_FILE in changed:
        (place / META_FILE).unlink()
    for name in sorted(changed, key=lambda name: name == META_FILE):
        (place / name).write_bytes((here / name).read_bytes())


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells a file of a finished index from another in its place, by its name."""
    found = {}
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != PARTS_DIR]
        for path in (Path(parent, name) for name in files if not name.startswith(".")):
            stat = path.stat()
            found[path.relative_to(folder).as_posix()] = stat.st_ino, stat.st_mtime_ns
    return found


def _generations(place: ObjectPath, names: list[str]) -> dict[str, str]:
    return dict(zip(names, generations([place / name for name in names]), strict=True))


def _known(file: Path) -> dict[str, str]:
    return json.loads(file.read_text()) if file.is_file() else {}


def _remember(file: Path, found: Mapping[str, str]) -> None:
    with written_whole(file) as opened:
        opened.write(json.dumps(found).encode())
