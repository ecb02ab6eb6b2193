"""Folders in object storage that are written as folders of this machine, and files read from there.

An object can be neither appended to nor locked. What a run or an evaluation writes beside
checkpoints is small: it is written to a folder of this machine, whose files are copied to their
addresses while they change.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from imagewam_jax.errors import DataError, WriteError
from imagewam_jax.files import LOCK_FILE, only_writer, written_whole
from imagewam_jax.storage.objects import AnyPath, ObjectPath, generations, is_remote
from imagewam_jax.storage.ranges import open_to_read

# The environment variable that names the folder of this machine for all of it; by default it is one
# where temporary files lie.
CACHE = "IMAGEWAM_CACHE"
COPY_SECONDS = 30.0  # between two copies of what has changed
_CHUNK = 2**23


class WrittenFolder(NamedTuple):
    """A folder to write in; `copy` sees to it that what is in it lies at its address, now.

    WriteError, of `copy`: it could not be copied.
    """

    folder: Path
    copy: Callable[[], None]


@contextlib.contextmanager
def folder_to_write(
    place: AnyPath, what: str, *, first: bool, leave_out: str = ""
) -> Iterator[WrittenFolder]:
    """A folder to write in, which no other process writes: `place` itself, or if that is an address
    a folder of this machine, with what lies there, whose files are copied there as they change.

    what: the command that writes, for messages. first: whether this is the first of its processes,
    which keeps those of other commands out; the others have a new folder each at an address, and
    add their files there. leave_out: a folder within, in which others write. InUseError names
    another process that writes there; at an address only processes of this machine are known.
    WriteError: the last copies could not be made.
    """
    with contextlib.ExitStack() as stack:
        if first or not is_remote(place):
            folder = _written(place)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if first:
            stack.enter_context(only_writer(lock_of(place), what))
        if not is_remote(place):
            yield WrittenFolder(folder, lambda: None)
        else:
            copies = _Copies(place, folder, leave_out)
            if first:
                copies.bring()
                but = f", but for {leave_out}," if leave_out else ""
                print(
                    f"{place}{but} is written in {folder}, and copied from there every "
                    f"{COPY_SECONDS:.0f} s and at the end",
                    flush=True,
                )
            stack.enter_context(copies.going_on())
            yield WrittenFolder(folder, copies.copy)


def lock_of(place: AnyPath) -> Path:
    """The lock of a folder; that of an address keeps out processes of this machine alone."""
    return _written(place) / LOCK_FILE


def local_file(path: AnyPath) -> Path:
    """The file at a path, or a copy of the object at an address, made once and kept.

    DataError: there is no such object, or it cannot be read.
    """
    if not is_remote(path):
        return path
    generation = generations([path])[0]
    if not generation:
        raise DataError(f"{path}: there is no such object")
    known_by = hashlib.sha256(f"{path} {generation}".encode()).hexdigest()[:16]
    copy = _here("read") / known_by / path.name
    if not copy.is_file():
        with written_whole(copy) as file:
            file.write(path.read_bytes())
    return copy


@contextlib.contextmanager
def fetched(path: AnyPath) -> Iterator[Path]:
    """A file or folder of this machine: what is at `path`, or a copy of what is at an address, for
    as long as it is needed. DataError: there is nothing."""
    if not is_remote(path):
        yield path
        return
    names = [""] if path.is_file() else path.objects()
    if not names:
        raise DataError(f"{path}: there is no such object, and no folder of objects")
    with tempfile.TemporaryDirectory(prefix="imagewam-") as folder:
        copy = Path(folder) / path.name
        with tqdm(unit="B", unit_scale=True, desc=f"fetching {path.name}") as bar:
            for name in names:
                fetch(path / name, copy / name, bar.update)
        yield copy


def fetch(path: ObjectPath, to: Path, tell: Callable[[int], object] = lambda size: None) -> None:
    """Copies an object to a file, which appears when it is whole; `tell` hears of bytes as they
    come. DataError: it is not there, or cannot be read."""
    with open_to_read(path) as source, written_whole(to) as file:
        while chunk := source.read(_CHUNK):
            file.write(chunk)
            tell(len(chunk))


def copy_of(place: ObjectPath) -> Path:
    """Where this machine keeps a copy of a file or folder in object storage."""
    return _here("read") / place.scheme / place.bucket / place.key


@contextlib.contextmanager
def file_to_write(path: AnyPath) -> Iterator[Path]:
    """A file to write: `path` itself, or if that is an address a file of this machine, which is
    what lies there, and is copied there at the end, unless there was an error."""
    if not is_remote(path):
        yield path
        return
    file = _written(path)
    if path.is_file():
        fetch(path, file)
    else:
        file.unlink(missing_ok=True)  # of an earlier object
    yield file
    path.write_bytes(file.read_bytes())


def _written(place: AnyPath) -> Path:
    """Where on this machine is written what lies at a place."""
    if not is_remote(place):
        return place
    return _here("written") / place.scheme / place.bucket / place.key


def _here(use: str) -> Path:
    """The folder of this machine for one of two uses."""
    default = Path(tempfile.gettempdir()) / f"imagewam-{os.getuid()}"
    return Path(os.environ.get(CACHE) or default) / use


class _Copies:
    """Keeps the objects below an address as the files of a folder are."""

    def __init__(self, place: ObjectPath, folder: Path, leave_out: str):
        self._place, self._folder, self._leave_out = place, folder, leave_out
        self._copied: dict[str, tuple[int, int]] = {}  # the state of each file, by its name
        self._stop = threading.Event()
        self._lock = threading.Lock()  # of copying

    def bring(self) -> None:
        """Makes the folder what lies at the address; what an earlier process left is removed."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()
        for name in self._place.objects():
            if name.partition("/")[0] != self._leave_out:
                fetch(self._place / name, self._folder / name)
        self._copied = self._files()

    @contextlib.contextmanager
    def going_on(self) -> Iterator[None]:
        """Copies while what is within runs, and once more at its end."""
        thread = threading.Thread(target=self._copy_now_and_then, daemon=True)
        thread.start()
        try:
            yield
        except BaseException:
            with contextlib.suppress(WriteError):  # which would hide the first error
                self._end(thread)
            raise
        self._end(thread)

    def _end(self, thread: threading.Thread) -> None:
        self._stop.set()
        thread.join()
        self.copy()

    def _copy_now_and_then(self) -> None:
        while not self._stop.wait(COPY_SECONDS):
            try:
                self.copy()
            except WriteError as error:
                print(f"{error}; will be tried again", file=sys.stderr, flush=True)

    def copy(self) -> None:
        """Copies what has changed, and removes what is gone. WriteError: that cannot be done."""
        try:
            with self._lock:
                files = self._files()
                for name, state in files.items():
                    if self._copied.get(name) != state:
                        self._copy_one(name)
                        self._copied[name] = state
                for name in self._copied.keys() - files.keys():
                    (self._place / name).unlink()
                    del self._copied[name]
        except DataError as error:
            raise WriteError(f"{error}; the files are in {self._folder}") from error

    def _copy_one(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # removed since
            content = (self._folder / name).read_bytes()
            (self._place / name).write_bytes(content)

    def _files(self) -> dict[str, tuple[int, int]]:
        """The size and the time of each file; none whose name begins with a dot, as those of locks
        and of unfinished files do."""
        found = {}
        for path in sorted(self._folder.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and not path.name.startswith("."):
                    stat = path.stat()
                    name = path.relative_to(self._folder).as_posix()
                    found[name] = stat.st_size, stat.st_mtime_ns
        return found
