"""How much work a training step is, how fast steps are done, and how full the devices are."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from imagewam_jax.models.flops import training_step
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.preprocess.inputs import PolicyAssets, work_sizes
from imagewam_jax.training.chips import chip_of_kind
from imagewam_jax.training.metrics.goodput import WallTime
from imagewam_jax.training.state import trained_paths


class Work(NamedTuple):
    """The work of one step on all devices of the run together."""

    samples: int
    flops: float = 0.0  # model FLOPs, backward pass included
    peak_flops: float | None = None  # that the devices can do in a second; None: not known


def step_work(
    config: Mapping[str, Any], policy: ImageWAMConfig, assets: PolicyAssets, mesh: Mesh
) -> Work:
    """Count the policy's work alone: not the autoencoder's, recomputation or padding.

    The peak is that of all devices of the mesh, where their kind is known.
    """
    data, train = config["data"], config["train"]
    # The latent grid depends on the size that images are resized to, not on the stored size.
    images = (train["batch_size"], len(data["cameras"]), 2, *data["image_size"], 3)
    sizes = work_sizes(data, assets, images)
    trained = trained_paths(policy, train["frozen"])
    flops = training_step(policy, sizes, lambda path: ".".join(path) in trained)
    chip = chip_of_kind(mesh.devices.flat[0].device_kind)
    peak = chip.flops * math.prod(mesh.devices.shape) if chip else None
    return Work(train["batch_size"], flops.total, peak)


class Window:
    """The steps since metrics were last written.

    `rows` are their metrics, which the device may still be computing: a window does not wait.
    """

    def __init__(self, wall: WallTime, work: Work):
        self.rows: list[Mapping[str, jax.Array]] = []
        self._wall, self._work = wall, work
        self._steps, self._seconds = wall.steps, wall.seconds()

    def speed(self) -> dict[str, float]:
        """The speed of the steps that the device finished in this window; empty without any.

        `seconds_per_step` includes the wait for data, not checkpoints or validation; `data_wait`
        is its share of waiting for data, `mfu` the share of the peak FLOPs of all devices.
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


def device_memory() -> dict[str, float]:
    """GiB in use now, and the most so far, on the fullest of this host's devices.

    Empty where devices do not report it: a CPU has no memory of its own.
    """
    stats = [found for device in jax.local_devices() if (found := device.memory_stats())]
    names = {"hbm_gib": "bytes_in_use", "hbm_peak_gib": "peak_bytes_in_use"}
    return {
        name: max(each[key] for each in stats) / 2**30
        for name, key in names.items()
        if stats and all(key in each for each in stats)
    }
