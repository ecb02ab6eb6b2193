"""How long a step takes at least, and about: from what a chip can do and what it has to."""

import dataclasses
from collections.abc import Sequence

from imagewam_jax.tpu_plans.compile import Compiled
from imagewam_jax.training.chips import Chip

# Shares of a chip's peaks that large programs commonly reach. Assumed, not measured here.
COMPUTING, READING, SENDING = 0.6, 0.7, 0.7


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Seconds of one step on each chip.

    computing, reading, sending: at the chip's peaks, over the links along all sides of the slice.
    No step is faster than computing or sending takes (`fastest`), whatever runs at once. `slow`
    takes the shares above, links along one side alone, and nothing at once. Reading is in it alone:
    the traffic of the memory is counted too high where a fusion takes parts of its operands.
    """

    computing: float
    reading: float
    sending: float
    fastest: float
    slow: float

    def utilization(self, useful: float, chips: int, chip: Chip) -> tuple[float, float]:
        """MFU of the slow and of the fastest step; `useful` is of all chips together."""
        at_peak = useful / (chips * chip.flops)
        return at_peak / self.slow, at_peak / self.fastest


def step_bounds(compiled: Compiled, flops: float, chip: Chip, sides: Sequence[int]) -> Bounds:
    """`flops` are those of each chip, where the compiled program hides some in kernels; `sides` are
    those of the slice, in chips."""
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
