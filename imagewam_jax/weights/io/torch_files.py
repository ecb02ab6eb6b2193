"""PyTorch's `.pt` files. The only place that imports PyTorch, and only when one is opened."""

import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.parameters import flatten
from imagewam_jax.weights.io.tensors import TensorSource, TensorSpec
from imagewam_jax.weights.io.writing import Progress, read_bytes, tensor_bytes

# What a file begins with: a zip archive, or, of PyTorch before 1.6, a pickle of a certain number.
ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\x0a"
# A file can make older versions run its code even where they are told to load weights alone
# (CVE-2025-32434, CVE-2026-24747).
OLDEST = (2, 10)
# How much of a file stays mapped into memory while it is read; mapped pages count as resident.
KEPT_MAPPED = 2**30


class TorchFile:
    """A `.pt` file: a dictionary of tensors and of dictionaries of them.

    Names are joined by dots. `values` holds what is not a tensor, such as the training step. The
    file is read without running code from it. Needs PyTorch.
    """

    def __init__(self, path: Path):
        """ConversionError: PyTorch is not installed, or refuses the file; or what is in it is not
        plain tensors under names of their own."""
        self.path = path
        self._lock = threading.Lock()
        self._mapped, self._read_bytes = None, 0
        self.specs: dict[str, TensorSpec] = {}
        self.values: dict[str, Any] = {}
        for name, value in self._contents(0).items():
            if _is_tensor(value):
                self.specs[name] = self._spec(name, value)
            elif _holds_tensors(value):
                raise ConversionError(
                    f"{path}: {name} is a {type(value).__name__} with tensors in it, which have no "
                    "names"
                )
            else:
                self.values[name] = value

    def read(self, name: str) -> np.ndarray:
        """ConversionError: the file is not what it was when it was opened."""
        spec = self.specs[name]
        tensor = self._contents(tensor_bytes(spec)).get(name)
        if not _is_tensor(tensor) or self._spec(name, tensor) != spec:
            raise ConversionError(f"{self.path}: has another {name} than before")
        tensor = tensor.contiguous()
        bits = tensor.view(_torch().uint8) if tensor.dim() else tensor[None].view(_torch().uint8)
        return np.array(bits.numpy()).view(spec.dtype).reshape(spec.shape)

    def _contents(self, size: int) -> dict[str, Any]:
        """Everything in the file, mapped; of which `size` bytes are going to be read."""
        with self._lock:
            self._read_bytes += size
            if self._read_bytes > KEPT_MAPPED:
                self._mapped = None  # before the file is mapped again
            if self._mapped is None:
                self._mapped, self._read_bytes = self._map(), size
            return self._mapped

    def _map(self) -> dict[str, Any]:
        whole = _load(self.path)
        if not isinstance(whole, Mapping):
            raise ConversionError(
                f"{self.path}: holds a {type(whole).__name__}, expected a dictionary of tensors"
            )
        try:
            return flatten(whole)
        except RecursionError:
            raise ConversionError(f"{self.path}: its dictionaries are nested without end") from None
        except ConversionError as error:
            raise ConversionError(f"{self.path}: {error}") from None

    def _spec(self, name: str, tensor: Any) -> TensorSpec:
        """ConversionError: it is not plain numbers in memory, or of a dtype that no weight has."""
        if kind := _special(tensor):
            raise ConversionError(f"{self.path}: {name} is {kind}, expected a plain tensor")
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _TORCH_DTYPES:
            raise ConversionError(f"{self.path}: {name} is of {dtype}, which no weight is")
        return TensorSpec(tuple(tensor.shape), _TORCH_DTYPES[dtype], str(self.path))


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
    twice. ConversionError: PyTorch is not installed or cannot write it, or what `read_checked`
    raises.
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


def _load(path: Path) -> Any:
    """What is in a file, mapped. ConversionError: PyTorch refuses it, or is asked to run code."""
    torch = _torch()
    try:
        with path.open("rb") as file:
            legacy = file.read(len(LEGACY)) == LEGACY
        if not legacy:
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # its own, pickle's and the zip reader's
        # Not from it: PyTorch's own words are advice to run the code.
        raise ConversionError(
            f"{path}: PyTorch cannot read it as weights alone, without running code from "
            f"it{_reason(str(error))}"
        ) from None
    raise ConversionError(
        f"{path}: is in the format that PyTorch had before 1.6, which is not read here; save it "
        "again with PyTorch 1.6 or newer"
    )


def _reason(message: str) -> str:
    """What is wrong with a file, where PyTorch's message says so."""
    if refused := re.search(r"GLOBAL ([\w.]+)", message):
        return f": it asks for {refused[1]}"
    first = next(iter(message.splitlines()), "")
    return f": {first}" if first and "weights_only" not in first else ""


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _torch().Tensor)


def _special(tensor: Any) -> str | None:
    """What a tensor is whose numbers do not lie in memory as its shape says."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != _torch().strided:
        return f"sparse ({tensor.layout})"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    if tensor.is_meta:
        return "without numbers (meta)"
    plain = type(tensor) in (_torch().Tensor, _torch().nn.Parameter)
    return None if plain else f"a {type(tensor).__name__}"


def _holds_tensors(value: Any) -> bool:
    """Whether a value has tensors in it that a name of a dictionary does not reach."""
    torch, seen, open_ = _torch(), set(), [value]
    while open_:
        value = open_.pop()
        if isinstance(value, (torch.Tensor, torch.TypedStorage, torch.UntypedStorage)):
            return True
        if id(value) not in seen and isinstance(value, (Mapping, list, tuple, set, frozenset)):
            seen.add(id(value))
            open_ += value.values() if isinstance(value, Mapping) else value
    return False


def _torch():
    """ConversionError: PyTorch is not installed, or is too old for files of unknown origin."""
    try:
        import torch
    except ImportError as error:
        raise ConversionError(
            "reading and writing .pt files needs PyTorch: pip install 'imagewam-jax[torch]'"
        ) from error
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or tuple(map(int, version.groups())) < OLDEST:
        raise ConversionError(
            f"PyTorch {torch.__version__} can be made to run code from a .pt file that is read as "
            f"weights alone; install {'.'.join(map(str, OLDEST))} or newer"
        )
    return torch
