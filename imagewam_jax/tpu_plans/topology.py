"""Describes TPU slices to the compiler without having them.

libtpu holds the compiler. Without a TPU it can make devices of any topology, for which programs can
be compiled and on which nothing can run.
"""

import importlib.util
import os
from typing import NamedTuple

import jax
from jax.experimental import topologies

from imagewam_jax.errors import PlanError
from imagewam_jax.training.chips import Chip, chip_of_kind


class Topology(NamedTuple):
    """A TPU slice: `name` is as in "v5p:4x4x4", `hosts` is the number of its machines."""

    name: str
    devices: list[jax.Device]
    chip: Chip
    hosts: int


def slice_sides(name: str) -> tuple[int, ...]:
    """The lengths in chips of the sides of a slice with a name such as "v5p:4x4x4"."""
    return tuple(int(side) for side in name.partition(":")[2].split("x"))


# Settings that libtpu would ask Google Cloud for, and log errors about outside of it.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    # Only a process that uses TPUs needs to be the only one with libtpu.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Any valid type of accelerator will do.
_ACCELERATOR = "v5litepod-16"


def require_libtpu() -> None:
    """PlanError, which says what to install, where libtpu is missing."""
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(
            "compiling for TPUs takes their compiler, the package libtpu, which is not installed: "
            "pip install 'imagewam-jax[aot]' (no TPU is needed)"
        )


def tpu_topology(name: str) -> Topology:
    """The slice with a name such as "v5p:4x4x4" or "v5e:1x1".

    From then on JAX uses the CPU alone, unless it has begun to use other devices before. PlanError:
    there is no such slice, or no libtpu.
    """
    require_libtpu()
    for variable, value in {**_ALONE, "TPU_ACCELERATOR_TYPE": _ACCELERATOR}.items():
        os.environ.setdefault(variable, value)
    jax.config.update("jax_platforms", "cpu")
    generation, _, sides = name.partition(":")
    # A host has four chips, except in slices with fewer.
    bounds = (1, 1, 1) if set(sides) <= set("1x") else (2, 2, 1)
    try:
        topology = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chips_per_host_bounds=bounds
        )
    except Exception as error:  # JAX has one type for all that libtpu says
        raise PlanError(
            f"{name!r} is no TPU topology; write it as v5e:4x4, v5p:2x2x1 or v6e:8x8 ({error})"
        ) from error
    devices = list(topology.devices)
    chip = chip_of_kind(devices[0].device_kind)
    if chip is None:
        raise PlanError(
            f"{name}: nothing is known of the chip {devices[0].device_kind!r} (training/chips.py)"
        )
    if len({tuple(device.coords) for device in devices}) < len(devices):
        raise PlanError(f"{name}: chips of several devices each are not planned for")
    hosts = len({device.process_index for device in devices})
    return Topology(f"{generation}:{sides}", devices, chip, hosts)
