"""Tells the folder of a step from other folders with a number as their name."""

import re

from imagewam_jax.storage.objects import AnyPath, is_remote

# How Orbax writes the number of a step.
_NUMBER = re.compile(r"0|[1-9][0-9]*")
# What Orbax puts beside the items of a step, and items of which every step has one.
_IN_A_STEP = ("_CHECKPOINT_METADATA", "metadata", "about", "params")
# What it writes last in object storage, where no folder can get its name when it is complete.
_COMPLETE = "commit_success.txt"


def names_a_step(path: AnyPath) -> bool:
    """Whether a path could be that of a step by its name."""
    return _NUMBER.fullmatch(path.name) is not None


def is_step(path: AnyPath) -> bool:
    """Whether a folder is one step of a checkpoint, by its name and by what is in it: a run or a
    converted checkpoint can have a number as its name, too. In object storage, one that is not
    complete is none."""
    if not names_a_step(path):
        return False
    if is_remote(path):
        return (path / _COMPLETE).is_file()
    return any((path / item).exists() for item in _IN_A_STEP)


def step_folders(directory: AnyPath) -> list[int]:
    """The steps in a folder, in order; none if it is not there."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(path.name) for path in found if is_step(path))
