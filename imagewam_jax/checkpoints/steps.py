"""Tells the folder of a step from other folders with a number as their name."""

import re
from pathlib import Path

# How Orbax writes the number of a step.
_NUMBER = re.compile(r"0|[1-9][0-9]*")
# What Orbax puts beside the items of a step, and items of which every step has one.
_IN_A_STEP = ("_CHECKPOINT_METADATA", "metadata", "about", "params")


def names_a_step(path: Path) -> bool:
    """Whether a path could be that of a step by its name."""
    return _NUMBER.fullmatch(path.name) is not None


def is_step(path: Path) -> bool:
    """Whether a folder is one step of a checkpoint, by its name and by what is in it: a run or a
    converted checkpoint can have a number as its name, too."""
    return names_a_step(path) and any((path / item).exists() for item in _IN_A_STEP)


def step_folders(directory: Path) -> list[int]:
    """The steps in a folder, in order; none if it is not there."""
    found = directory.iterdir() if directory.is_dir() else ()
    return sorted(int(path.name) for path in found if is_step(path))
