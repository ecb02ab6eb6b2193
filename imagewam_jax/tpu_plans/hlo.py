"""Parses compiled programs as XLA prints them (HLO), as far as counting needs it.

A module consists of computations that call each other: bodies of loops, fusions, branches. How
often a computation runs in a step follows from how often its callers run and from trip counts.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple


class ArrayType(NamedTuple):
    """The type of one array in a program; `space` 0 is the chip's main memory."""

    dtype: str
    shape: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)
        size = 0 if self.dtype == "token" else int(bits.group()) if bits else 8  # pred
        for length in self.shape:
            size *= length
        return -(-size // 8)


class Instruction(NamedTuple):
    """One line of a computation.

    `types` are the array types of its result, which may be a tuple; `inputs` is the text between
    its parentheses, `attributes` the text after them.
    """

    name: str
    opcode: str
    types: tuple[ArrayType, ...]
    inputs: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.inputs)

    def attribute(self, name: str) -> str | None:
        """The value of an attribute that is one word, such as a computation's name."""
        found = re.search(rf"\b{name}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else None


@dataclass(frozen=True)
class Computation:
    name: str
    instructions: dict[str, Instruction]  # in the order of the text
    root: str


@dataclass(frozen=True)
class Module:
    """A compiled program for each of `partitions` devices."""

    computations: dict[str, Computation]
    entry: str
    partitions: int


_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
# A Pallas kernel's note about itself stands on a line of its own, within its instruction.
_KERNEL_NOTE = re.compile(r'\n(?="xprof_metadata")|(?<=")\n(?=\}\})')
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<=]*)\](\{[^}]*\})?")
_SPACE = re.compile(r"S\((\d+)\)")


def parse_module(text: str) -> Module:
    """Parse the text of a compiled program, `jax.stages.Compiled.as_text()`."""
    computations, entry, name, lines, root = {}, "", "", {}, ""
    for line in _KERNEL_NOTE.sub("", text).splitlines():
        if head := _HEAD.match(line):
            name, lines, root = head.group(2), {}, ""
            entry = name if head.group(1) else entry
        elif name and (match := _LINE.match(line)):
            instruction = _instruction(match.group(2), match.group(3))
            lines[instruction.name] = instruction
            root = instruction.name if match.group(1) else root
        elif name and line.startswith("}"):
            computations[name] = Computation(name, lines, root)
            name = ""
    if entry not in computations:
        raise ValueError("not the text of a compiled program: it has no ENTRY computation")
    partitions = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    return Module(computations, entry, int(partitions.group(1)) if partitions else 1)


def _instruction(name: str, text: str) -> Instruction:
    types, rest = _split_type(text)
    opcode, _, rest = rest.partition("(")
    end = _closing(rest, 1)
    return Instruction(name, opcode.strip(), _arrays(types), rest[:end], rest[end + 1 :])


def _split_type(text: str) -> tuple[str, str]:
    if text.startswith("("):
        end = _closing(text, 0) + 1
        return text[:end], text[end:]
    types, _, rest = text.partition(" ")
    return types, rest


def _closing(text: str, depth: int) -> int:
    """The position that closes the outermost of `depth` parentheses open at the start."""
    for position, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0 and character == ")":
            return position
    return len(text)


def _arrays(text: str) -> tuple[ArrayType, ...]:
    found = []
    for dtype, shape, layout in _ARRAY.findall(text):
        space = _SPACE.search(layout)
        lengths = tuple(int(length.lstrip("<=")) for length in shape.split(",") if length)
        found.append(ArrayType(dtype, lengths, int(space.group(1)) if space else 0))
    return tuple(found)


class Runs(NamedTuple):
    """How often each computation runs in one call of the program.

    `unknown` are loops whose number of iterations is not known; they count as running once.
    """

    counts: Counter[str]
    unknown: tuple[str, ...]


def fused_computations(module: Module) -> set[str]:
    """The computations that fused instructions consist of."""
    return {
        instruction.attribute("calls")
        for computation in module.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "fusion"
    }


def computed_instructions(module: Module) -> Iterator[tuple[Computation, Instruction]]:
    """The instructions that a chip runs, each with its computation; fused ones are parts of one."""
    fused = fused_computations(module)
    for name, computation in module.computations.items():
        for instruction in () if name in fused else computation.instructions.values():
            yield computation, instruction


def count_runs(module: Module) -> Runs:
    """Count the runs of each computation; every branch counts whenever its conditional runs."""
    counts: Counter[str] = Counter()
    unknown = []

    def visit(name: str, runs: int) -> None:
        counts[name] += runs
        computation = module.computations[name]
        for instruction in computation.instructions.values():
            times = 1
            if instruction.opcode == "while":
                known = trip_count(module, computation, instruction)
                times = 1 if known is None else known
                if known is None:
                    unknown.append(instruction.name)
            for callee in called(module, instruction):
                visit(callee, runs * times)

    visit(module.entry, 1)
    return Runs(counts, tuple(dict.fromkeys(unknown)))


def called(module: Module, instruction: Instruction) -> Iterator[str]:
    """The computations that an instruction runs.

    Not among them: what a reduction applies to single numbers, and the second half of an
    asynchronous call.
    """
    if instruction.opcode in ("async-update", "async-done"):
        return
    for attribute in ("calls", "body", "true_computation", "false_computation"):
        if name := instruction.attribute(attribute):
            yield name
    if instruction.opcode == "call" and (name := instruction.attribute("to_apply")):
        yield name
    if branches := re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes):
        yield from re.findall(r"%?([\w.\-]+)", branches.group(1))


def trip_count(module: Module, caller: Computation, loop: Instruction) -> int | None:
    """How often a loop's body runs, from XLA's note or the loop's condition; None: not known."""
    noted = re.search(r'"known_trip_count":\s*\{"n":\s*"?(\d+)', loop.attributes)
    if noted:
        return int(noted.group(1))
    condition = module.computations[loop.attribute("condition")]
    body = module.computations[loop.attribute("body")]
    comparison = condition.instructions.get(condition.root)
    if comparison is None or comparison.opcode != "compare":
        return None
    low, high = comparison.operands
    if comparison.attribute("direction") == "GT":
        low, high = high, low
    elif comparison.attribute("direction") != "LT":
        return None
    place = _element(condition, low)
    initial = caller.instructions.get(loop.operands[0])
    if place is None or initial is None or initial.opcode != "tuple":
        return None
    stop = _integer(condition, high)
    if stop is None and (carried := _element(condition, high)) is not None:
        stop = _integer(caller, initial.operands[carried])
    start = _integer(caller, initial.operands[place])
    step = _increment(body, place)
    if None in (start, stop, step) or step < 1:
        return None
    return max(0, -(-(stop - start) // step))


# Operations that only move a value.
_MOVES = ("copy", "bitcast", "copy-done", "copy-start", "reshape")


def _source(computation: Computation, name: str) -> Instruction | None:
    instruction = computation.instructions.get(name)
    while instruction is not None and instruction.opcode in _MOVES:
        instruction = computation.instructions.get(instruction.operands[0])
    return instruction


def _element(computation: Computation, name: str) -> int | None:
    """The index of a value in the one parameter of its computation; None: it is not from there."""
    instruction = _source(computation, name)
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    return int(instruction.attribute("index"))


def _integer(computation: Computation, name: str) -> int | None:
    instruction = _source(computation, name)
    if instruction is None or instruction.opcode != "constant":
        return None
    return int(instruction.inputs) if re.fullmatch(r"-?\d+", instruction.inputs) else None


def _increment(body: Computation, place: int) -> int | None:
    root = body.instructions.get(body.root)
    if root is None or root.opcode != "tuple":
        return None
    added = _source(body, root.operands[place])
    if added is None or added.opcode != "add":
        return None
    left, right = added.operands
    if _element(body, left) != place:
        left, right = right, left
    return _integer(body, right) if _element(body, left) == place else None
