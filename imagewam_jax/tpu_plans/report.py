"""A plan as a page and as JSON: its memory, FLOPs, traffic, and the estimated time of a step."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from imagewam_jax.errors import PlanError
from imagewam_jax.tpu_plans.assumed import Kernel
from imagewam_jax.tpu_plans.collectives import Volume
from imagewam_jax.tpu_plans.compile import Compiled
from imagewam_jax.tpu_plans.cost import Operation
from imagewam_jax.tpu_plans.estimate import Cost, Estimate, step_estimate
from imagewam_jax.tpu_plans.floor import Stage
from imagewam_jax.tpu_plans.programs import Counts
from imagewam_jax.tpu_plans.tables import gib, table, tera
from imagewam_jax.tpu_plans.time_page import time_section, traffic_section
from imagewam_jax.tpu_plans.topology import slice_sides
from imagewam_jax.training.chips import GIB, Chip, chip_named


@dataclasses.dataclass(frozen=True)
class Plan:
    """What was compiled and what was found, to be written as JSON and as Markdown.

    note: why the plan is as it is; the page begins with it. setup: what a reader wants to know of
    the config, in order. samples: of one step on all chips. memory, stages: see `Program`.
    compiled: None where the program does not fit; `shortage` is what the compiler said then.
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
    stages: tuple[Stage, ...]
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
    def estimate(self) -> Estimate | None:
        """The time of a step and what it consists of; None: the program does not fit."""
        if self.compiled is None:
            return None
        return step_estimate(
            self.compiled.cost,
            self.compiled.collectives,
            self.stages,
            self.counts.useful,
            self._chip,
            slice_sides(self.topology),
            self.chips,
        )

    def to_json(self) -> str:
        """The plan with the figures derived from it; `plan_from_json` reads it."""
        estimate = self.estimate
        derived = {
            "spare": self.spare,
            "estimate": None if estimate is None else dataclasses.asdict(estimate),
        }
        return json.dumps(dataclasses.asdict(self) | derived, indent=1) + "\n"

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
            table(("", ""), self.setup.items(), left=2),
            self._memory(),
            self._work(),
        ]
        if self.compiled is not None:
            estimate, cost = self.estimate, self.compiled.cost
            parts += [
                time_section(estimate, cost, self.samples, self._chip),
                traffic_section(self.compiled.collectives, estimate),
            ]
            if self.compiled.unknown_loops:
                parts.append(
                    "The compiler does not say how often these loops run; they count as running "
                    f"once: {', '.join(self.compiled.unknown_loops)}."
                )
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        took = f"; compiled in {self.compiled.seconds:.0f} s" if self.compiled else ""
        return "\n\n".join([*parts, f"{versions}{took}."]) + "\n"

    def _memory(self) -> str:
        rows = [(name, gib(size)) for name, size in self.memory.items() if size]
        hbm = self._chip.hbm
        if self.compiled is None:
            rows += [("arguments together", gib(self._held)), ("HBM", gib(hbm))]
            verdict = f"**It does not fit.** The compiler: {self.shortage}."
        else:
            found = self.compiled
            rows += [
                ("padding of their layouts", gib(max(0, found.arguments - self._held))),
                ("temporaries", gib(found.temporaries)),
                ("results beside the arguments", gib(found.outputs - found.aliased)),
                ("program", gib(found.code)),
                ("**peak**", f"**{gib(self.peak)}**"),
                ("HBM that a program can have", gib(hbm)),
            ]
            verdict = (
                f"{self.spare:.0%} of the memory is spare; {gib(found.aliased)} GiB of results "
                "take the place of arguments."
            )
        return f"## Memory of a chip\n\n{table(('', 'GiB'), rows)}\n\n{verdict}"

    def _work(self) -> str:
        counts = self.counts
        once = counts.computed - counts.recomputed - counts.autoencoder
        rows = [
            ("useful: the policy's model FLOPs", tera(counts.useful), ""),
            (
                "computed by the policy, without recomputation",
                tera(once),
                f"{once / counts.useful:.3f} of useful",
            ),
            ("recomputed in the backward pass", tera(counts.recomputed), ""),
            ("images through the autoencoder", tera(counts.autoencoder), ""),
            ("all that is computed", tera(counts.computed), ""),
        ]
        if self.compiled is not None:
            compiled = self.compiled.flops * self.chips
            rows.append(
                (
                    "all that the compiled program computes",
                    tera(compiled),
                    f"{compiled / counts.computed:.3f} of computed",
                )
            )
        rows.append(
            (
                "with 512 rows of text and a joint mask it would be",
                tera(counts.dense),
                f"useful is {counts.useful / counts.dense:.2f} of it",
            )
        )
        return "## Work of a step, all chips\n\n" + table(("", "TFLOP", ""), rows)


def plan_from_json(text: str) -> Plan:
    """The inverse of `Plan.to_json`. PlanError: an earlier version of this package wrote it."""
    found = json.loads(text)
    if "estimate" not in found:
        raise PlanError(
            f"the plan {found.get('title', '')!r} has no estimate, since an earlier version wrote "
            "it: remove its JSON and make it again (python -m launch.make_plans)"
        )
    del found["spare"], found["estimate"]
    if found["compiled"] is not None:
        found["compiled"] = _compiled(found["compiled"])
    stages = tuple(Stage(**stage) for stage in found["stages"])
    return Plan(**{**found, "counts": Counts(**found["counts"]), "stages": stages})


def _compiled(found: dict[str, Any]) -> Compiled:
    cost = found["cost"] | {
        "kernels": tuple(Kernel(**kernel) for kernel in found["cost"]["kernels"]),
        "operations": tuple(Operation(**row) for row in found["cost"]["operations"]),
    }
    collectives = {
        kind: Volume(**{**volume, "groups": {int(k): v for k, v in volume["groups"].items()}})
        for kind, volume in found["collectives"].items()
    }
    loops = tuple(found["unknown_loops"])
    changed = {"cost": Cost(**cost), "collectives": collectives, "unknown_loops": loops}
    return Compiled(**{**found, **changed})


def index_rows(plans: Mapping[str, Plan]) -> str:
    """A Markdown table of plans, each with a link to its page; keys are file names without .md."""
    rows = []
    for name, plan in plans.items():
        row: list[Any] = [f"[{plan.title}]({name}.md)", plan.setup["mesh"], plan.setup["samples"]]
        estimate = plan.estimate
        if estimate is None:
            rows.append((*row, "does not fit", *[""] * 6))
            continue
        waiting = estimate.exposed_communication_seconds / estimate.seconds
        rows.append(
            (
                *row,
                f"{plan.peak / GIB:.1f} of {plan._chip.hbm / GIB:.1f}",
                f"{plan.spare:.0%}",
                f"{1e3 * estimate.seconds:.1f}",
                f"{1e3 * estimate.floor_seconds:.1f}",
                f"{estimate.products_share:.0%}",
                f"{waiting:.0%}",
                f"{estimate.mfu:.0%}",
            )
        )
    head = ("plan", "mesh", "samples", "GiB of HBM", "spare", "ms a step", "floor", "products")
    return table((*head, "waiting for chips", "MFU"), rows)
