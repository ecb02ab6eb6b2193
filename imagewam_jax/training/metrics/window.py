"""How fast the steps between two rows of metrics were."""

from collections.abc import Mapping
from typing import NamedTuple

import jax

from imagewam_jax.training.metrics.goodput import WallTime


class Work(NamedTuple):
    """What a step does, on all devices of the run together."""

    samples: int
    flops: float = 0.0  # by the model's own count, backward pass included
    peak_flops: float | None = None  # that the devices can do in a second; None: not known


class Window:
    """The steps since metrics were last written.

    `rows` are their metrics, which the device may still be computing: a window does not wait.
    """

    def __init__(self, wall: WallTime, work: Work):
        self.rows: list[Mapping[str, jax.Array]] = []
        self._wall, self._work = wall, work
        self._steps, self._seconds = wall.steps, wall.seconds()

    def speed(self) -> dict[str, float]:
        """Of the steps that the device finished in this time; nothing where there were none.

        `seconds_per_step` has the wait for data in it, not checkpoints or validation; `data_wait`
        is its share, `mfu` the share of the peak FLOPs of all devices.
        """
        steps = self._wall.steps - self._steps
        if not steps:
            return {}
        now = self._wall.seconds()
        spent = {name: now[name] - self._seconds[name] for name in ("steps", "data_wait")}
        per_step = sum(spent.values()) / steps
        speed = {
            "seconds_per_step": per_step,
            "samples_per_second": self._work.samples / per_step,
            "data_wait": spent["data_wait"] / (per_step * steps),
        }
        if self._work.peak_flops:
            speed["mfu"] = self._work.flops / per_step / self._work.peak_flops
        return speed
