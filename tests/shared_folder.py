"""What a test run makes once and all its processes read: trained policies, sets that TFDS wrote."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

_VARIABLE = "IMAGEWAM_TEST_FOLDER"


def begin() -> Path:
    """Make the folder of this test run, or find the one that the process that began it made."""
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="imagewam-tests-")
    return Path(os.environ[_VARIABLE])


def end() -> None:
    """Delete the folder of this test run, if there is one."""
    if folder := os.environ.get(_VARIABLE):
        shutil.rmtree(folder, ignore_errors=True)


def shared(name: str, make: Callable[[Path], object]) -> Path:
    """The folder of this name, which tests must not change.

    The first process that asks for it lets `make` fill it, and the others wait. One that was left
    unfinished is made anew.
    """
    folder = begin() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    finished = folder.with_name(f"{folder.name}.finished")
    with FileLock(f"{folder}.lock"):
        if not finished.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            finished.touch()
    return folder
