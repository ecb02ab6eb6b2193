"""What waits for what in the schedule of a compiled program.

The text of a program for TPUs is in the order in which a chip runs it. Transfers go on beside the
operations that stand between their start and their end, and only what they take longer is waited
for. Some transfers have no start: everything waits for them.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from imagewam_jax.tpu_plans.collectives import Collective, sendings
from imagewam_jax.tpu_plans.cost import Times
from imagewam_jax.tpu_plans.hlo import (
    ArrayType,
    Computation,
    Instruction,
    Module,
    Runs,
    called,
    fused_computations,
    trip_count,
)

MEMORY = "memory"  # the kind of waiting for copies between a chip's memories
_COPIES = ("copy-start", "slice-start", "dynamic-slice-start", "dynamic-update-slice-start")
_MEMORIES = (0, 1)  # main and vector memory, as layouts number them; 5 is the host's


class Speeds(NamedTuple):
    """How long things take.

    times: of operations, without what they call. links: bytes per second that a chip
    receives. memory: bytes per second of its main memory.
    """

    times: Times
    links: float
    memory: float


@dataclass
class _Flight:
    """A transfer that has started: `left` seconds of it are still to come.

    Steps of a `fused` one are taken by the fusions that name it, and by no other operation.
    """

    kind: str
    left: float
    fused: bool


@dataclass
class _Spent:
    """Seconds of one run of a computation, with what it calls.

    busy: operations. linked: transfers between chips. waits: those of the computation alone, by the
    kind of what is waited for; `waited`: all of them, with what it calls.
    """

    busy: float = 0.0
    linked: float = 0.0
    waited: float = 0.0
    waits: Counter[str] = field(default_factory=Counter)


def waiting_seconds(module: Module, runs: Runs, speeds: Speeds) -> dict[str, float]:
    """Seconds that a chip waits in one call, by the kind of collective, and for `MEMORY`.

    Assumed: the links carry one transfer at a time, in the order of their starts, except that the
    one that is waited for goes first; so the same work never hides two transfers. So do copies
    between a chip's memories, beside the links. Of a collective that is split over fusions, only
    these fusions hide something. A computation that another one calls begins and ends without
    transfers of its own, and hides those of its caller as far as its own leave the links free.
    Copies to and from the host's memory, whose speed is not known, are never waited for.
    """
    walk, fused = _Walk(module, speeds), fused_computations(module)
    total: Counter[str] = Counter()
    for name, count in runs.counts.items():
        if name not in fused:
            for kind, seconds in walk.spent(name).waits.items():
                total[kind] += count * seconds
    return dict(total)


class _Walk:
    """Goes through computations in the order of their schedule, each of them once."""

    def __init__(self, module: Module, speeds: Speeds):
        self._module, self._speeds = module, speeds
        self._found: dict[str, _Spent] = {}

    def spent(self, name: str) -> _Spent:
        if name not in self._found:
            self._found[name] = self._walk(self._module.computations[name])
        return self._found[name]

    def _walk(self, computation: Computation) -> _Spent:
        spent = _Spent()
        links: dict[str, _Flight] = {}
        copies: dict[str, _Flight] = {}

        def wait(flights: dict[str, _Flight], key: str) -> None:
            flight = flights.pop(key)
            spent.waits[flight.kind] += flight.left
            spent.waited += flight.left
            # Meanwhile the other kind of transfer goes on.
            _advance(copies if flights is links else links, flight.left)

        parts = _collective_parts(self._module, computation)
        for instruction in computation.instructions.values():
            operands = instruction.operands
            part = parts.get(instruction.name)
            inner = self._called(computation, instruction)
            time = self._speeds.times.get((computation.name, instruction.name))
            seconds = time.seconds if time is not None else 0.0
            spent.busy += seconds + inner.busy
            spent.linked += inner.linked
            spent.waited += inner.waited
            _advance(copies, seconds + inner.busy + inner.waited)
            own = part.key if part is not None else None
            _advance(links, seconds + max(0.0, inner.busy - inner.linked), own)

            if part is not None and part.key not in links:
                needed = part.collective.wire / self._speeds.links
                spent.linked += needed
                links[part.key] = _Flight(part.collective.kind, needed, part.is_split)
            if part is not None and part.is_last:
                wait(links, part.key)
            elif instruction.opcode.endswith("-done") and operands and operands[0] in links:
                wait(links, operands[0])
            elif instruction.opcode in _COPIES:
                needed = _copied(computation, instruction) / self._speeds.memory
                copies[instruction.name] = _Flight(MEMORY, needed, False)
            elif instruction.opcode.endswith("-done") and operands and operands[0] in copies:
                wait(copies, operands[0])
        for flights in (links, copies):
            for key in list(flights):
                wait(flights, key)
        return spent

    def _called(self, caller: Computation, instruction: Instruction) -> _Spent:
        """What an instruction calls, as often as it does; nothing for a fusion."""
        total = _Spent()
        if instruction.opcode == "fusion":
            return total
        times = 1
        if instruction.opcode == "while":
            times = trip_count(self._module, caller, instruction) or 1
        for name in called(self._module, instruction):
            inner = self.spent(name)
            total.busy += times * inner.busy
            total.linked += times * inner.linked
            total.waited += times * inner.waited
        return total


def _advance(flights: dict[str, _Flight], seconds: float, own: str | None = None) -> None:
    """Let transfers go on for some time, one after another.

    own: the one that the operation of these seconds belongs to, which goes first; it is the only
    split one that goes on.
    """
    for key in sorted(flights, key=lambda key: key != own):
        flight = flights[key]
        if key == own or not flight.fused:
            done = min(flight.left, seconds)
            flight.left -= done
            seconds -= done


class _Part(NamedTuple):
    """What an instruction does of a collective: `key` names it; `is_last`: it is over then."""

    key: str
    collective: Collective
    is_split: bool
    is_last: bool


def _collective_parts(module: Module, computation: Computation) -> dict[str, _Part]:
    """The instructions of a computation that perform collectives, by name."""
    found = list(sendings(module, computation.name))
    last = {sent.channel: sent.instruction for sent in found if sent.channel is not None}
    counts = Counter(sent.channel for sent in found)
    parts: dict[str, _Part] = {}
    for name, collective, channel in found:
        opcode = computation.instructions[name].opcode
        is_split = channel is not None and counts[channel] > 1
        key = f"channel {channel}" if is_split else name
        is_last = last[channel] == name if is_split else not opcode.endswith("-start")
        parts[name] = _Part(key, collective, is_split, is_last)
    return parts


def _copied(computation: Computation, instruction: Instruction) -> int:
    """Bytes that an asynchronous copy moves from or to the main memory."""
    source = computation.instructions.get(instruction.operands[0])
    before = source.types if source is not None else ()
    arrays = _results(instruction)
    spaces = {array.space for array in (*before, *arrays)}
    if 0 not in spaces or spaces - set(_MEMORIES):
        return 0
    return min(sum(array.bytes for array in arrays), sum(array.bytes for array in before))


def _results(instruction: Instruction) -> list[ArrayType]:
    """What an asynchronous copy makes: its type is (result, operand, context) for a copy and
    ((operands), result, context) for a slice."""
    arrays = [array for array in instruction.types if array.shape]
    return arrays[:1] if instruction.opcode == "copy-start" else arrays[-1:]
