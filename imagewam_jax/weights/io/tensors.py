"""Named tensors that are read one at a time, wherever they come from.

A source knows all names, shapes and dtypes from the start and reads a tensor only on request, so
that weights larger than memory can be checked first and converted piece by piece. Sources wrap each
other: one that merges LoRA factors, or makes first weights of the action expert, is a source too.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import NamedTuple, Protocol

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from imagewam_jax.errors import ConversionError

# The dtypes of weights. Integers and 8-bit numbers would need scales, which are stored elsewhere.
DTYPES = {np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16)}
QUANTISED = (
    "these weights are quantised, and are not read, since they need scales that every format "
    "stores in its own way; take those in bfloat16, float16 or float32"
)

Progress = Callable[[int], object]  # called with the number of bytes that were just written


class TensorSpec(NamedTuple):
    """What is known about a tensor before it is read; `file` is for messages."""

    shape: tuple[int, ...]
    dtype: np.dtype
    file: str


class TensorSource(Protocol):
    """`read` returns an array of the shape and dtype in `specs`; it is called from threads."""

    specs: Mapping[str, TensorSpec]

    def read(self, name: str) -> np.ndarray: ...


class ArraySource:
    """Tensors that are in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray], file: str):
        self._arrays = arrays
        self.specs = {k: TensorSpec(v.shape, v.dtype, file) for k, v in arrays.items()}

    def read(self, name: str) -> np.ndarray:
        return self._arrays[name]


class Renamed:
    """Tensors of a source under other names: `rename` returns the new name, or None to leave a
    tensor out. ConversionError: two tensors would have the same name."""

    def __init__(self, source: TensorSource, rename: Callable[[str], str | None]):
        self._source = source
        self._old: dict[str, str] = {}
        for old, spec in source.specs.items():
            new = rename(old)
            if new in self._old:
                raise ConversionError(f"{spec.file}: both {self._old[new]} and {old} are {new}")
            if new is not None:
                self._old[new] = old
        self.specs = {new: source.specs[old] for new, old in self._old.items()}

    def read(self, name: str) -> np.ndarray:
        return self._source.read(self._old[name])


class Joined:
    """The tensors of several sources. ConversionError: two sources have a tensor of one name."""

    def __init__(self, *sources: TensorSource):
        self._source_of: dict[str, TensorSource] = {}
        self.specs: dict[str, TensorSpec] = {}
        for source in sources:
            for name, spec in source.specs.items():
                if name in self.specs:
                    raise ConversionError(
                        f"{name} is in both {self.specs[name].file} and {spec.file}"
                    )
                self._source_of[name], self.specs[name] = source, spec

    def read(self, name: str) -> np.ndarray:
        return self._source_of[name].read(name)


def without(source: TensorSource, names: Collection[str]) -> TensorSource:
    """The source, without the tensors of these names."""
    return Renamed(source, lambda name: None if name in names else name)


def read_checked(source: TensorSource, name: str) -> np.ndarray:
    """Read a tensor. ConversionError: it differs from its spec, or holds a NaN or an infinity."""
    spec, tensor = source.specs[name], source.read(name)
    if tensor.shape != tuple(spec.shape) or tensor.dtype != spec.dtype:
        raise ConversionError(
            f"{spec.file}: {name} is {tensor.dtype} {tensor.shape}, expected {spec.dtype} "
            f"{tuple(spec.shape)}"
        )
    bad = count_not_finite(tensor)
    if bad:
        raise ConversionError(f"{spec.file}: {name} holds {bad} numbers that are NaN or infinite")
    return tensor


def read_bytes(source: TensorSource, name: str) -> np.ndarray:
    """Read a tensor as a row of uint8. Errors are those of `read_checked`."""
    return contiguous(read_checked(source, name)).reshape(-1).view(np.uint8)


def tensor_bytes(spec: TensorSpec) -> int:
    """The size of a tensor in bytes."""
    return int(np.prod(spec.shape)) * spec.dtype.itemsize


def source_bytes(source: TensorSource) -> int:
    """The size of all tensors of a source in bytes."""
    return sum(map(tensor_bytes, source.specs.values()))


def count_not_finite(tensor: np.ndarray) -> int:
    """The count of numbers that are NaN or infinite: those whose exponent bits are all set."""
    if tensor.dtype not in DTYPES:
        return int((~np.isfinite(tensor)).sum())
    exponent = np.array(np.inf, tensor.dtype).view(_bits(tensor.dtype))
    return int(sum((block & exponent == exponent).sum() for block in _blocks(tensor)))


def contiguous(view: np.ndarray, *, block: int = 64) -> np.ndarray:
    """A C-contiguous array of the same numbers.

    A transposed matrix is copied in strips that stay in the cache, which is several times faster
    than in one go, and as plain bits, since NumPy copies bfloat16 one number at a time.
    """
    if view.flags.c_contiguous:
        return view
    bits = view.view(_bits(view.dtype)) if view.dtype in DTYPES else view
    out = np.empty(bits.shape, bits.dtype)
    for start in range(0, bits.shape[-1], block):
        out[..., start : start + block] = bits[..., start : start + block]
    return out.view(view.dtype)


def _bits(dtype: np.dtype) -> np.dtype:
    return np.dtype(f"u{dtype.itemsize}")


def _blocks(tensor: np.ndarray, size: int = 2**20) -> Iterator[np.ndarray]:
    """The bits of a tensor in blocks, small enough that a mask of one is small too."""
    flat = np.ascontiguousarray(tensor).reshape(-1).view(_bits(tensor.dtype))
    return (flat[start : start + size] for start in range(0, flat.size, size))


def dtype_name(dtypes: set[np.dtype]) -> str:
    """The names of dtypes for a message: "bfloat16", or "bfloat16 and float32"."""
    return " and ".join(sorted(jnp.dtype(dtype).name for dtype in dtypes))
