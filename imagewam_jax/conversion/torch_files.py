"""PyTorch's `.pt` files. The only place that imports PyTorch, and only when one is opened."""

import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from imagewam_jax.conversion.errors import ConversionError
from imagewam_jax.conversion.tensors import TensorSource, TensorSpec
from imagewam_jax.conversion.writing import Progress, read_bytes

# How much of a file stays mapped into memory while it is read; mapped pages count as resident.
KEPT_MAPPED = 2**30


class TorchFile:
    """A `.pt` file: a dictionary of tensors and of dictionaries of them.

    Names are joined by dots. `values` holds what is not a tensor, such as the training step. The
    file is read without running code from it. Needs PyTorch.
    """

    def __init__(self, path: Path):
        """ConversionError: PyTorch is not installed, or refuses the file."""
        self.path = path
        self._tensors, self._read_bytes = None, 0
        self.specs: dict[str, TensorSpec] = {}
        self.values: dict[str, Any] = {}
        for name, value in self._load().items():
            if not hasattr(value, "untyped_storage"):
                self.values[name] = value
                continue
            dtype = str(value.dtype).removeprefix("torch.")
            if dtype not in _TORCH_DTYPES:
                raise ConversionError(f"{path}: {name} is of {dtype}, which no weight is")
            self.specs[name] = TensorSpec(tuple(value.shape), _TORCH_DTYPES[dtype], str(path))

    def read(self, name: str) -> np.ndarray:
        spec = self.specs[name]
        self._read_bytes += int(np.prod(spec.shape)) * spec.dtype.itemsize
        if self._read_bytes > KEPT_MAPPED:
            self._tensors = None
        tensor = self._load()[name].contiguous()
        bits = tensor.view(_torch().uint8) if tensor.dim() else tensor[None].view(_torch().uint8)
        return np.array(bits.numpy()).view(spec.dtype).reshape(spec.shape)

    def _load(self) -> dict[str, Any]:
        if self._tensors is None:
            self._read_bytes = 0
            self._tensors = _flat(self._read_whole(), "")
        return self._tensors

    def _read_whole(self) -> Mapping[str, Any]:
        torch = _torch()
        try:
            whole = torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # its own, pickle's and the zip reader's
            raise ConversionError(
                f"{self.path}: PyTorch cannot read it as weights alone, without running code from "
                f"it: {str(error).splitlines()[0]}"
            ) from error
        if not isinstance(whole, Mapping):
            raise ConversionError(
                f"{self.path}: holds a {type(whole).__name__}, expected a dictionary of tensors"
            )
        return whole


class TensorName(str):
    """Stands for the tensor of a source that has this name, among what is to be written."""


def write_torch_file(
    path: Path,
    contents: Mapping[str, Any],
    source: TensorSource,
    progress: Progress = lambda size: None,
) -> None:
    """What `torch.save` makes of nested dictionaries of plain values and of `TensorName`s.

    Where a name stands twice, both are one tensor, stored once. Tensors are read in the order of
    the source and put into files in a folder beside `path`, which PyTorch then maps: as much disk
    again while it saves, and no more memory than one tensor. `progress` is told of each byte
    twice. ConversionError: PyTorch is not installed or cannot write it, or a tensor is not what its
    spec says.
    """
    torch = _torch()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        tensors = {}
        for name in source.specs:
            tensors[name] = _mapped(source, name, Path(scratch) / "tensor")
            progress(tensors[name].nbytes)
        try:
            torch.save(_filled(contents, tensors), path)
        except RuntimeError as error:  # of a full disk, too
            raise ConversionError(f"{path}: PyTorch cannot write it: {error}") from error
    for tensor in tensors.values():
        progress(tensor.nbytes)


def _mapped(source: TensorSource, name: str, file: Path):
    """A tensor of PyTorch that stays on disk, in a file without a name."""
    torch = _torch()
    spec, data = source.specs[name], read_bytes(source, name)
    # Written, not mapped and filled: a full disk is an error then, not the end of the process.
    file.write_bytes(data.data)
    storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=data.nbytes)
    file.unlink()
    return torch.empty(0, dtype=getattr(torch, spec.dtype.name)).set_(storage).view(spec.shape)


def _filled(contents: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Of the same types, so that what stands for a module's state is an ordered dictionary."""
    filled = OrderedDict() if isinstance(contents, OrderedDict) else {}
    for key, value in contents.items():
        if isinstance(value, Mapping):
            value = _filled(value, tensors)
        filled[key] = tensors[value] if isinstance(value, TensorName) else value
    return filled


_TORCH_DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float64": np.dtype(np.float64),
    "int64": np.dtype(np.int64),
    "int32": np.dtype(np.int32),
    "uint8": np.dtype(np.uint8),
    "int8": np.dtype(np.int8),
    "bool": np.dtype(np.bool_),
}


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _torch():
    try:
        import torch
    except ImportError as error:
        raise ConversionError(
            "reading and writing .pt files needs PyTorch: pip install 'imagewam-jax[torch]'"
        ) from error
    return torch
