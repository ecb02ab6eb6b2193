"""Counts what chips send each other in one call of a compiled program."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from imagewam_jax.tpu_plans.hlo import Instruction, Module, Runs, fused_computations

KINDS = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)


class Collective(NamedTuple):
    """One collective operation of a program.

    payload: bytes of the whole array on a chip, the larger of input and output. wire: bytes that a
    chip receives in a ring algorithm over its group: all but its own share for an array that is
    gathered or scattered, twice that for an all-reduce.
    """

    kind: str
    group: int  # the number of chips that take part together
    payload: int
    wire: float


@dataclass
class Volume:
    """The collectives of one kind in one call of the program, on each chip.

    payload, wire: sums of those of `Collective`. groups: counts by the size of the group.
    """

    count: int = 0
    payload: float = 0
    wire: float = 0
    groups: dict[int, int] = field(default_factory=dict)


def collective_volumes(module: Module, runs: Runs) -> dict[str, Volume]:
    """Sum the collectives of a program by kind, most bytes first; loops are multiplied out."""
    volumes: dict[str, Volume] = {}
    fused = fused_computations(module)
    for name, count in runs.counts.items():
        seen = set()
        for sent in () if name in fused else sendings(module, name):
            if sent.channel in seen:
                continue
            if sent.channel is not None:
                seen.add(sent.channel)
            collective = sent.collective
            volume = volumes.setdefault(collective.kind, Volume())
            volume.count += count
            volume.payload += count * collective.payload
            volume.wire += count * collective.wire
            before = volume.groups.get(collective.group, 0)
            volume.groups[collective.group] = before + count
    return dict(sorted(volumes.items(), key=lambda item: -item[1].wire))


class Sending(NamedTuple):
    """An instruction of a computation that performs a collective or a part of one.

    channel: what the parts of one collective have in common; None: the instruction is all of it, or
    it starts what an instruction with an opcode on "-done" ends.
    """

    instruction: str
    collective: Collective
    channel: str | None


def sendings(module: Module, name: str) -> Iterator[Sending]:
    """The collectives of a computation and of its fusions, in the order of the schedule.

    The TPU compiler splits a collective that it overlaps with other work over several fusions. Each
    of them names the whole collective, with the same channel.
    """
    for instruction in module.computations[name].instructions.values():
        if instruction.opcode != "fusion":
            kind = instruction.opcode.removesuffix("-start")
            if kind in KINDS:
                collective = _collective(module, name, instruction, kind)
                yield Sending(instruction.name, collective, None)
            continue
        fused = instruction.attribute("calls")
        for inner in module.computations[fused].instructions.values():
            kind = inner.opcode.removesuffix("-start")
            if kind not in KINDS:
                continue
            # The TPU compiler writes a reduce-scatter as a fusion that reduces and then slices.
            if kind == "all-reduce" and fused.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            collective = _collective(module, fused, inner, kind)
            yield Sending(instruction.name, collective, inner.attribute("channel_id"))


def _collective(module: Module, name: str, instruction: Instruction, kind: str) -> Collective:
    sources = module.computations[name].instructions
    arrays = [array for o in instruction.operands if o in sources for array in sources[o].types]
    operand = sum(array.bytes for array in arrays)
    group = _group_size(instruction, module.partitions)
    share = (group - 1) / group
    if kind == "all-gather":
        return Collective(kind, group, group * operand, share * group * operand)
    if kind == "all-reduce":
        return Collective(kind, group, operand, 2 * share * operand)
    if kind == "collective-permute":
        return Collective(kind, group, operand, operand)
    return Collective(kind, group, operand, share * operand)


def _group_size(instruction: Instruction, partitions: int) -> int:
    """The number of chips of a collective's group, from each of XLA's ways of writing groups."""
    text = instruction.attributes
    # Between the mesh and the axes of a group there may be an order of devices.
    if mesh := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\([^{]*\))?\s*\{([^}]*)\}", text
    ):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        size = 1
        for axis, part in re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2)):
            size *= int(part or sizes[axis])
        return size
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota.group(1))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed.group(1).split(","))
    return partitions
