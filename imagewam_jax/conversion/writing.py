"""What the writers of foreign files share."""

from collections.abc import Callable

import numpy as np

from imagewam_jax.conversion.errors import ConversionError
from imagewam_jax.conversion.tensors import TensorSource, TensorSpec, contiguous

Progress = Callable[[int], object]  # is told how many bytes were written


def tensor_bytes(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape)) * spec.dtype.itemsize


def source_bytes(source: TensorSource) -> int:
    """Size of all tensors."""
    return sum(map(tensor_bytes, source.specs.values()))


def read_bytes(source: TensorSource, name: str) -> np.ndarray:
    """One tensor as a row of uint8. ConversionError: it is not what its spec says."""
    spec, tensor = source.specs[name], source.read(name)
    if tensor.shape != tuple(spec.shape) or tensor.dtype != spec.dtype:
        raise ConversionError(
            f"{spec.file}: {name} is {tensor.dtype} {tensor.shape}, expected {spec.dtype} "
            f"{tuple(spec.shape)}"
        )
    return contiguous(tensor).reshape(-1).view(np.uint8)
