"""The peak performance of accelerators as their vendors state it, a row each.

Model FLOPs utilization (MFU) is relative to `flops`, estimates of step times to all numbers. A chip
that is not here has no MFU; none is guessed.
"""

from dataclasses import dataclass

GB, GIB = 1e9, 2**30


@dataclass(frozen=True)
class Chip:
    """One accelerator.

    flops: per second, in bfloat16 with float32 sums, without structured sparsity.
    hbm: bytes of memory that a program can have; for TPUs from v5e on, as their compiler says.
    hbm_bandwidth: bytes per second.
    interconnect: bytes per second that a chip receives over all links to its neighbors (half of
    what vendors call bidirectional).
    kinds: the values of `jax.Device.device_kind`, of a device and of a topology without devices.
    clock: cycles per second, in which a TPU's compiler estimates; None: it is not known. It follows
    from the peak: a unit that multiplies matrices does 128 x 128 multiplications and additions in a
    cycle. v5e has 4 of them, v5p 8 in two cores, which run one program together, and v6e as many
    as 16. With these clocks the compiler's estimates of large products come close to the peaks.
    """

    name: str
    flops: float
    hbm: float
    hbm_bandwidth: float
    interconnect: float
    kinds: tuple[str, ...]
    source: str
    clock: float | None = None


_TPU = "https://cloud.google.com/tpu/docs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center"

CHIPS = (
    Chip("v4", 275e12, 32 * GIB, 1228 * GB, 300 * GB, ("TPU v4",), f"{_TPU}/v4"),
    Chip(
        "v5e",
        197e12,
        15.75 * GIB,
        819 * GB,
        200 * GB,
        ("TPU v5 lite", "TPU v5e"),
        f"{_TPU}/v5e",
        1.50e9,
    ),
    Chip(
        "v5p",
        459e12,
        95.73 * GIB,
        2765 * GB,
        600 * GB,
        ("TPU v5", "TPU v5p"),
        f"{_TPU}/v5p",
        1.75e9,
    ),
    Chip(
        "v6e",
        918e12,
        31.24 * GIB,
        1640 * GB,
        400 * GB,
        ("TPU v6 lite", "TPU v6e"),
        f"{_TPU}/v6e",
        1.75e9,
    ),
    Chip(
        "A100 40GB",
        312e12,
        40 * GB,
        1555 * GB,
        300 * GB,
        ("NVIDIA A100-SXM4-40GB",),
        f"{_NVIDIA}/a100",
    ),
    Chip(
        "A100 80GB",
        312e12,
        80 * GB,
        2039 * GB,
        300 * GB,
        ("NVIDIA A100-SXM4-80GB",),
        f"{_NVIDIA}/a100",
    ),
    Chip(
        "H100", 989e12, 80 * GB, 3350 * GB, 450 * GB, ("NVIDIA H100 80GB HBM3",), f"{_NVIDIA}/h100"
    ),
    Chip("H200", 989e12, 141 * GB, 4800 * GB, 450 * GB, ("NVIDIA H200",), f"{_NVIDIA}/h200"),
)


def chip_of_kind(device_kind: str) -> Chip | None:
    """The chip with a `jax.Device.device_kind`; None: it is not known."""
    return next((chip for chip in CHIPS if device_kind in chip.kinds), None)


def chip_named(name: str) -> Chip:
    """The chip with a name such as "v5e"; KeyError: there is none, and these are known."""
    for chip in CHIPS:
        if chip.name == name:
            return chip
    raise KeyError(f"no chip {name!r}; known are {[chip.name for chip in CHIPS]}")
