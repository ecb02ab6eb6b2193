"""What the writers of foreign files share."""

from collections.abc import Callable

import numpy as np

from imagewam_jax.weights.io.tensors import TensorSource, TensorSpec, contiguous, read_checked

Progress = Callable[[int], object]  # is told how many bytes were written


def tensor_bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape)) * spec.dtype.itemsize


def source_bytes(source: TensorSource) -> int:
    """Size of all tensors."""
    return sum(map(tensor_bytes, source.specs.values()))


def read_bytes(source: TensorSource, name: str) -> np.ndarray:
    """One tensor as a row of uint8. Errors are those of `read_checked`."""
    return contiguous(read_checked(source, name)).reshape(-1).view(np.uint8)
