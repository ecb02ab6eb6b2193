"""Finds the lines of code that the operations of a compiled program come from.

XLA writes them in one of two ways: a table of files, functions, lines and stack frames above the
computations, to which instructions refer by `stack_frame_id`, or `source_file` and `source_line` in
each instruction, without the callers.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from imagewam_jax.tpu_plans.hlo import Instruction

PACKAGE = "imagewam_jax"
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")


class Frame(NamedTuple):
    """A line of code. function: its qualified name, empty where the program does not say it."""

    file: str
    function: str
    line: int

    @property
    def is_ours(self) -> bool:
        """Whether the line is in this package."""
        return f"/{PACKAGE}/" in f"/{self.file}"

    def __str__(self) -> str:
        for folder in (PACKAGE, "site-packages"):
            _, found, inside = f"/{self.file}".rpartition(f"/{folder}/")
            if found:
                return f"{inside}:{self.line}"
        return f"{self.file.rpartition('/')[2]}:{self.line}"


# Lines of code by number: the line itself first, then its callers.
Stacks = Mapping[int, tuple[Frame, ...]]


def parse_stacks(text: str) -> Stacks:
    """The stack frames of a compiled program's text; empty where it has no table of them."""
    head = text.partition("\n%")[0]
    rows = {name: _table(head, name) for name in _TABLES}
    parents, own = {}, {}
    for number, row in rows["StackFrames"].items():
        fields = _fields(row)
        location = _fields(rows["FileLocations"][fields["file_location_id"]])
        parents[number] = fields["parent_frame_id"]
        own[number] = Frame(
            rows["FileNames"][location["file_name_id"]].strip('"'),
            rows["FunctionNames"][location["function_name_id"]].strip('"'),
            location["line"],
        )
    # Some versions of XLA write the number after the parent's: the outermost frame, whose parent is
    # none, then seems to be its own parent.
    shift = int(any(number == parent for number, parent in parents.items()))
    stacks: dict[int, tuple[Frame, ...]] = {}
    for number in own:
        frames, place = [], number
        while place in own and len(frames) <= len(own):
            frames.append(own[place])
            place = parents[place] - shift
        stacks[number] = tuple(frames)
    return stacks


def stack_of(instruction: Instruction, stacks: Stacks) -> tuple[Frame, ...]:
    """The line that an instruction comes from and its callers; empty: the program does not say."""
    if number := re.search(r"\bstack_frame_id=(\d+)", instruction.attributes):
        return stacks.get(int(number.group(1)), ())
    file = re.search(r'source_file="([^"]*)"', instruction.attributes)
    line = re.search(r"source_line=(\d+)", instruction.attributes)
    return (Frame(file.group(1), "", int(line.group(1))),) if file and line else ()


def op_name(instruction: Instruction) -> str:
    """What JAX calls an operation: names of functions and transformations, then the primitive."""
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return found.group(1).replace("\\'", "'") if found else ""


def shown(stack: tuple[Frame, ...]) -> str:
    """The innermost line of this package, and who calls the file that it is in."""
    ours = [frame for frame in stack if frame.is_ours] or list(stack[:1])
    if not ours:
        return ""
    callers = [frame for frame in ours if frame.file != ours[0].file]
    return f"{ours[0]}, from {callers[0]}" if callers else str(ours[0])


def _table(head: str, name: str) -> dict[int, str]:
    """The numbered rows under a heading, up to an empty line."""
    found = re.search(rf"^{name}\n((?:\d+ .*\n?)*)", head, re.MULTILINE)
    rows = (row.split(" ", 1) for row in found.group(1).splitlines()) if found else ()
    return {int(number): value for number, value in rows}


def _fields(row: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", row)}
