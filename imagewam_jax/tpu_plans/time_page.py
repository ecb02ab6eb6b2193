"""The part of a plan's page that says what a step costs: one line, and tables of what is in it."""

from collections.abc import Mapping

from imagewam_jax.tpu_plans.assumed import KERNEL_SHARE, LEAST_SHARE, MOST_SHARE
from imagewam_jax.tpu_plans.collectives import Volume
from imagewam_jax.tpu_plans.estimate import Cost, Estimate
from imagewam_jax.tpu_plans.tables import TERA, gigabytes, milliseconds, table, tera
from imagewam_jax.training.chips import GB, Chip


def step_line(estimate: Estimate) -> str:
    """The time of a step and its MFU, in one line."""
    return f"a step takes {milliseconds(estimate.seconds)} ms, {estimate.mfu:.1%} MFU"


def time_section(estimate: Estimate, cost: Cost, samples: int, chip: Chip) -> str:
    """What a step takes, by kind of operation, and what that rests on."""
    parts = [
        "## Time of a step: the compiler's estimate, not a measurement",
        f"**Estimated: {step_line(estimate)}**, {samples / estimate.seconds:.4g} samples a second; "
        f"the range is {milliseconds(estimate.low_seconds)} to "
        f"{milliseconds(estimate.high_seconds)} ms, and the floor is "
        f"{milliseconds(estimate.floor_seconds)} ms.",
        _kinds(estimate, cost),
        f"The compiler estimates the cycles of operations; at {chip.clock / 1e9:.2f} GHz they are "
        "these times. What waits for memory or for other chips is read from the schedule. In the "
        "range, communication is all hidden at best, and at worst none of it is and it goes over "
        "the links along one side of the slice. Waiting for data is not in it.",
        *_assumptions(cost, chip),
        "The floor is the longest of what each part must compute, read and receive at the peaks "
        f"of {chip.name} ({chip.source}): {chip.flops / TERA:.0f} TFLOP/s in bfloat16, "
        f"{chip.hbm_bandwidth / GB:.0f} GB/s of memory, {chip.interconnect / GB:.0f} GB/s from "
        "neighbours over all links of a chip: "
        + ", ".join(f"{name} {milliseconds(time)} ms" for name, time in estimate.floor.items())
        + ".",
        "## The dearest operations",
        _dearest(cost),
    ]
    return "\n\n".join(parts)


def _kinds(estimate: Estimate, cost: Cost) -> str:
    rows = [
        (kind, seconds, cost.assumed.get(kind, 0.0))
        for kind, seconds in [*cost.kinds.items(), ("waiting for memory", cost.memory_wait)]
    ]
    exposed = estimate.exposed_communication_seconds
    rows += [
        ("**computing**", estimate.compute_seconds, estimate.assumed_seconds),
        ("waiting for other chips", exposed, 0.0),
        ("**a step**", estimate.seconds, estimate.assumed_seconds),
    ]
    return table(
        ("", "ms", "of the step", "not estimated, assumed: ms"),
        [
            (
                name,
                milliseconds(seconds),
                f"{seconds / estimate.seconds:.1%}",
                milliseconds(assumed) if assumed else "",
            )
            for name, seconds, assumed in rows
        ],
    )


def _assumptions(cost: Cost, chip: Chip) -> list[str]:
    parts = []
    if cost.kernels:
        rows = [
            (
                kernel.name,
                str(kernel.runs),
                tera(kernel.flops),
                gigabytes(kernel.moved),
                milliseconds(kernel.seconds(chip, KERNEL_SHARE)),
            )
            for kernel in cost.kernels
        ]
        parts += [
            "The compiler does not estimate kernels of Pallas. Assumed is that their products "
            f"reach {KERNEL_SHARE:.0%} of the chip's peak, or that their operands and results "
            f"pass through its memory, if that is longer; in the range, {LEAST_SHARE:.0%} and "
            f"{MOST_SHARE:.0%} of the peak:",
            table(("kernel, not estimated", "runs", "TFLOP", "GB", "ms"), rows),
        ]
    others = sum(cost.assumed.values())
    others -= sum(kernel.seconds(chip, KERNEL_SHARE) for kernel in cost.kernels)
    if others > 1e-6:
        parts.append(
            f"Operations of {milliseconds(others)} ms, among them slices with strides and changes "
            "of layout, have no estimate either: assumed is that they write their results to "
            "memory and read as much."
        )
    return parts


def _dearest(cost: Cost) -> str:
    rows = [
        (
            operation.kind + (" (assumed)" if operation.is_assumed else ""),
            operation.name,
            operation.result,
            operation.source,
            str(operation.runs),
            milliseconds(operation.seconds),
        )
        for operation in cost.operations
    ]
    return table(("kind", "operation", "result", "line", "runs", "ms"), rows, left=4)


def traffic_section(volumes: Mapping[str, Volume], estimate: Estimate) -> str:
    """What chips send each other in a step, how long it takes, and what of it is hidden."""
    heading = "## What a chip receives from others in a step"
    if not volumes:
        return f"{heading}\n\nChips send each other nothing."
    rows = []
    for kind, volume in volumes.items():
        sent = estimate.collectives[kind]
        groups = ", ".join(str(size) for size in sorted(volume.groups))
        rows.append(
            (
                kind,
                str(volume.count),
                "neighbours" if kind == "collective-permute" else groups,
                gigabytes(volume.payload),
                gigabytes(volume.wire),
                milliseconds(sent.seconds),
                milliseconds(sent.hidden),
                milliseconds(sent.exposed),
            )
        )
    head = (
        "",
        "count",
        "chips together",
        "whole, GB",
        "received, GB",
        "ms",
        "hidden",
        "waited for",
    )
    wire = sum(volume.wire for volume in volumes.values())
    seconds = sum(sent.seconds for sent in estimate.collectives.values())
    speed = f"{wire / seconds / GB:.0f} GB/s" if seconds else "any speed"
    return "\n\n".join(
        [
            heading,
            f"{gigabytes(wire)} GB, at {speed} over its links in this slice. Hidden is what the "
            "schedule leaves to other operations between the start and the end of a transfer.",
            table(head, rows),
        ]
    )
