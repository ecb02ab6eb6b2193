"""Attention of queries over one or more segments of keys.

Who may look at whom is decided by the segments that a caller passes, never by a mask over
queries: see `blocks.py`. Only trailing keys, where padded text stands, are masked.

    xla       plain JAX, on any device (`xla.py`)
    splash    TPUs (`splash.py`)
    cudnn     NVIDIA GPUs (`cudnn.py`)
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxtyping import DTypeLike

from imagewam_jax.models.attention.cudnn import attend_cudnn, check_cudnn
from imagewam_jax.models.attention.segments import KV, Attend
from imagewam_jax.models.attention.splash import check_splash, make_splash
from imagewam_jax.models.attention.xla import attend_xla, attention_weights

__all__ = [
    "BACKENDS",
    "KV",
    "Attend",
    "attend_xla",
    "attention_weights",
    "backend",
    "check_backend",
]

# Kernels by name, chosen in the config and never replaced silently. Each takes the arguments of
# `attend_xla` and raises a ValueError on what it cannot do.
BACKENDS: Mapping[str, Attend] = MappingProxyType(
    {"xla": attend_xla, "splash": make_splash(), "cudnn": attend_cudnn}
)
# What a kernel takes, where it does not take everything: (platform, channels of a head, dtype).
_CHECKS: Mapping[str, Callable[[str, int, DTypeLike], None]] = MappingProxyType(
    {"splash": check_splash, "cudnn": check_cudnn}
)


def backend(name: str) -> Attend:
    """The attention kernel called `name`; ValueError names the choices."""
    if name not in BACKENDS:
        raise ValueError(f"unknown attention backend {name!r}; choose from {sorted(BACKENDS)}")
    return BACKENDS[name]


def check_backend(name: str, platform: str, head_dim: int, dtype: DTypeLike) -> None:
    """ValueError: the kernel called `name` does not run on this platform ("cpu", "gpu", "tpu"),
    with heads of so many channels, in this dtype. Kernels say the same when they are traced."""
    backend(name)
    if name in _CHECKS:
        _CHECKS[name](platform, head_dim, dtype)
