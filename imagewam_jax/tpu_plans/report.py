"""A plan as a page and as JSON: its memory, FLOPs, traffic, and bounds of the time of a step."""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from imagewam_jax.tpu_plans.collectives import Volume
from imagewam_jax.tpu_plans.compile import Compiled
from imagewam_jax.tpu_plans.programs import Counts
from imagewam_jax.training.chips import Chip, chip_named

GIB, GB, TERA = 2**30, 1e9, 1e12

# Shares of a chip's peaks that large programs commonly reach. Assumed, not measured here.
COMPUTING, READING, SENDING = 0.6, 0.7, 0.7


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Bounds of the seconds that one step takes on each chip.

    computing, reading, sending: at the chip's peaks, over the links along all sides of the slice.
    fastest: the longer of computing and sending, which no step can beat, whatever it overlaps.
    slow: everything in turn, at the shares of the peaks above, over the links along one side alone.
    Reading counts in `slow` alone, since memory traffic is counted too high where a fusion takes
    parts of its operands.
    """

    computing: float
    reading: float
    sending: float
    fastest: float
    slow: float

    def utilization(self, useful: float, chips: int, chip: Chip) -> tuple[float, float]:
        """MFU of the slow and of the fastest step; `useful` are the FLOPs of all chips together."""
        at_peak = useful / (chips * chip.flops)
        return at_peak / self.slow, at_peak / self.fastest


def step_bounds(compiled: Compiled, flops: float, chip: Chip, sides: Sequence[int]) -> Bounds:
    """Bound the time of a compiled step.

    `flops` are the traced ones of each chip: a compiled program hides those of custom kernels.
    `sides` are the lengths of the slice's sides in chips.
    """
    computing = max(compiled.flops, flops) / chip.flops
    reading = compiled.traffic / chip.hbm_bandwidth
    wire = sum(volume.wire for volume in compiled.collectives.values())
    along_one_side = wire / (chip.interconnect / len(sides))
    sending = along_one_side / max(1, sum(side > 1 for side in sides))
    return Bounds(
        computing,
        reading,
        sending,
        fastest=max(computing, sending),
        slow=computing / COMPUTING + reading / READING + along_one_side / SENDING,
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was compiled and what was found, to be written as JSON and as Markdown.

    note: why the plan is as it is; the page begins with it. setup: what a reader wants to know of
    the config, in order. samples: of one step on all chips. memory: see `Program`. compiled: None
    where the program does not fit; `shortage` is what the compiler said then.
    """

    title: str
    command: str
    note: str
    topology: str
    chip: str
    chips: int
    setup: dict[str, str]
    samples: int
    memory: dict[str, int]
    counts: Counts
    compiled: Compiled | None
    shortage: str
    versions: dict[str, str]

    @property
    def peak(self) -> int | None:
        """Bytes that a chip needs; None: the program does not fit.

        Arrays that a chip holds without the program using them, such as the autoencoder's decoder
        in training, count, although the compiler leaves them out.
        """
        if self.compiled is None:
            return None
        return self.compiled.peak + max(0, self._held - self.compiled.arguments)

    @property
    def spare(self) -> float | None:
        """The share of a chip's memory that is left; None: the program does not fit."""
        return None if self.peak is None else 1 - self.peak / self._chip.hbm

    @property
    def bounds(self) -> Bounds | None:
        """The bounds of a step's time; None: the program does not fit."""
        if self.compiled is None:
            return None
        sides = [int(side) for side in self.topology.partition(":")[2].split("x")]
        return step_bounds(self.compiled, self.counts.computed / self.chips, self._chip, sides)

    def to_json(self) -> str:
        """The plan with the figures derived from it; `plan_from_json` reads it."""
        found = dataclasses.asdict(self)
        derived = {"spare": self.spare, "bounds": self.bounds and dataclasses.asdict(self.bounds)}
        return json.dumps({**found, "derived": derived}, indent=1) + "\n"

    @property
    def _held(self) -> int:
        return sum(self.memory.values())

    @property
    def _chip(self) -> Chip:
        return chip_named(self.chip)

    def markdown(self) -> str:
        """The plan as a page."""
        parts = [
            f"# {self.title}",
            *([self.note] if self.note else []),
            f"```\n{self.command}\n```",
            _table(("", ""), self.setup.items(), left=2),
            self._memory(),
            self._work(),
        ]
        if self.compiled is not None:
            parts += [self._traffic(), self._time()]
            if self.compiled.unknown_loops:
                parts.append(
                    "The compiler does not say how often these loops run; they count as running "
                    f"once: {', '.join(self.compiled.unknown_loops)}."
                )
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        took = f"; compiled in {self.compiled.seconds:.0f} s" if self.compiled else ""
        return "\n\n".join([*parts, f"{versions}{took}."]) + "\n"

    def _memory(self) -> str:
        rows = [(name, _gib(size)) for name, size in self.memory.items() if size]
        hbm = self._chip.hbm
        if self.compiled is None:
            rows += [("arguments together", _gib(self._held)), ("HBM", _gib(hbm))]
            verdict = f"**It does not fit.** The compiler: {self.shortage}."
        else:
            found = self.compiled
            rows += [
                ("padding of their layouts", _gib(max(0, found.arguments - self._held))),
                ("temporaries", _gib(found.temporaries)),
                ("results beside the arguments", _gib(found.outputs - found.aliased)),
                ("program", _gib(found.code)),
                ("**peak**", f"**{_gib(self.peak)}**"),
                ("HBM that a program can have", _gib(hbm)),
            ]
            verdict = (
                f"{self.spare:.0%} of the memory is spare; {_gib(found.aliased)} GiB of results "
                "take the place of arguments."
            )
        return f"## Memory of a chip\n\n{_table(('', 'GiB'), rows)}\n\n{verdict}"

    def _work(self) -> str:
        counts = self.counts
        once = counts.computed - counts.recomputed - counts.autoencoder
        rows = [
            ("useful: the policy's model FLOPs", _tera(counts.useful), ""),
            (
                "computed by the policy, without recomputation",
                _tera(once),
                f"{once / counts.useful:.3f} of useful",
            ),
            ("recomputed in the backward pass", _tera(counts.recomputed), ""),
            ("images through the autoencoder", _tera(counts.autoencoder), ""),
            ("all that is computed", _tera(counts.computed), ""),
        ]
        if self.compiled is not None:
            compiled = self.compiled.flops * self.chips
            rows.append(
                (
                    "all that the compiled program computes",
                    _tera(compiled),
                    f"{compiled / counts.computed:.3f} of computed",
                )
            )
        rows.append(
            (
                "with 512 rows of text and a joint mask it would be",
                _tera(counts.dense),
                f"useful is {counts.useful / counts.dense:.2f} of it",
            )
        )
        return "## Work of a step, all chips\n\n" + _table(("", "TFLOP", ""), rows)

    def _traffic(self) -> str:
        rows = [_volume_row(kind, volume) for kind, volume in self.compiled.collectives.items()]
        wire = sum(volume.wire for volume in self.compiled.collectives.values())
        traffic = f"{self.compiled.traffic / GB:.1f} GB at most from and "
        heading = f"## Traffic of a chip in a step\n\n{traffic}"
        if not rows:
            return f"{heading}to its memory; chips send each other nothing."
        return f"{heading}to its memory; {wire / GB:.2f} GB from other chips:\n\n" + _table(
            ("", "count", "chips together", "whole, GB", "received, GB"), rows
        )

    def _time(self) -> str:
        bounds, chip = self.bounds, self._chip
        low, high = bounds.utilization(self.counts.useful, self.chips, chip)
        rows = [
            ("computing", f"{bounds.computing:.4g}"),
            ("reading and writing memory, at most", f"{bounds.reading:.4g}"),
            ("receiving from other chips", f"{bounds.sending:.4g}"),
            ("**a step takes at least**", f"**{bounds.fastest:.4g}**"),
            ("and without overlap, at the usual shares of the peaks", f"{bounds.slow:.4g}"),
        ]
        return "\n\n".join(
            [
                "## Time of a step: bounds, not measurements",
                _table(("", "seconds"), rows),
                f"So between {self.samples / bounds.slow:.3g} and "
                f"{self.samples / bounds.fastest:.3g} samples a second, and a model FLOPs "
                f"utilisation between {low:.0%} and {high:.0%}.",
                f"The first is at the peaks of {chip.name} ({chip.source}): "
                f"{chip.flops / TERA:.0f} TFLOP/s in bfloat16, {chip.hbm_bandwidth / GB:.0f} GB/s "
                f"of memory, {chip.interconnect / GB:.0f} GB/s from neighbours over all its links, "
                "with both at once and memory no limit. The second assumes "
                f"{COMPUTING:.0%}, {READING:.0%} and "
                f"{SENDING:.0%} of them, links along one side of the slice, and one after another. "
                "Waiting for data is in neither.",
            ]
        )


def plan_from_json(text: str) -> Plan:
    """The inverse of `Plan.to_json`."""
    found = json.loads(text)
    del found["derived"]
    if found["compiled"] is not None:
        collectives = {
            kind: Volume(**{**volume, "groups": {int(k): v for k, v in volume["groups"].items()}})
            for kind, volume in found["compiled"]["collectives"].items()
        }
        loops = tuple(found["compiled"]["unknown_loops"])
        found["compiled"] = Compiled(
            **{**found["compiled"], "collectives": collectives, "unknown_loops": loops}
        )
    return Plan(**{**found, "counts": Counts(**found["counts"])})


def index_rows(plans: Mapping[str, Plan]) -> str:
    """A Markdown table of plans, each with a link to its page; keys are file names without .md."""
    rows = []
    for name, plan in plans.items():
        row: list[Any] = [f"[{plan.title}]({name}.md)", plan.setup["mesh"], plan.setup["samples"]]
        if plan.compiled is None:
            rows.append((*row, "does not fit", "", "", ""))
            continue
        low, high = plan.bounds.utilization(plan.counts.useful, plan.chips, plan._chip)
        rows.append(
            (
                *row,
                f"{plan.peak / GIB:.1f} of {plan._chip.hbm / GIB:.1f}",
                f"{plan.spare:.0%}",
                f"{plan.bounds.fastest:.3g} - {plan.bounds.slow:.3g}",
                f"{low:.0%} - {high:.0%}",
            )
        )
    head = ("plan", "mesh", "samples", "GiB of HBM", "spare", "seconds a step", "MFU")
    return _table(head, rows)


def _volume_row(kind: str, volume: Volume) -> tuple[str, ...]:
    groups = ", ".join(str(size) for size in sorted(volume.groups))
    together = "neighbours" if kind == "collective-permute" else groups
    return (
        kind,
        str(volume.count),
        together,
        f"{volume.payload / GB:.2f}",
        f"{volume.wire / GB:.2f}",
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table with aligned columns, for terminals; those from `left` on align right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(head))]

    def shown(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return f"| {' | '.join(cells)} |"

    rule = ["-" * (width - (column >= left)) for column, width in enumerate(widths)]
    rule = [dashes + ":" * (column >= left) for column, dashes in enumerate(rule)]
    return "\n".join([shown(lines[0]), shown(rule), *map(shown, lines[1:])])


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _tera(flops: float) -> str:
    return f"{flops / TERA:.2f}"
