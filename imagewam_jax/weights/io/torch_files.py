"""PyTorch's `.pt` files. Only this module imports PyTorch, and only when a file is opened."""

import re
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (gives NumPy the dtype bfloat16)
import numpy as np

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.parameters import flatten
from imagewam_jax.weights.io.tensors import (
    QUANTISED,
    Progress,
    TensorSource,
    TensorSpec,
    read_bytes,
    tensor_bytes,
)

# The first bytes of a file: a zip archive, or (before PyTorch 1.6) a pickle of a magic number.
ZIP, LEGACY = b"PK\x03\x04", b"\x80\x02\x8a\x0a"
# In older versions a file can run code of its own even with `weights_only=True` (CVE-2025-32434,
# CVE-2026-24747).
OLDEST = (2, 10)
# How many bytes are read before a file is mapped anew, since mapped pages count as resident.
KEPT_MAPPED = 2**30
# The entries of a checkpoint in which trainers keep what they need to go on, as they name them.
_TRAINING = re.compile(
    r"(optim|opt_|lr_sched|sched|scaler|grad_scaler|amp_|loss_scaler|callbacks|loops|dataloader"
    r"|random_state|(cuda_|torch_|np_|numpy_|python_)?rng)|(opt|amp)$"
)


class TorchFile:
    """A `.pt` file that holds a dictionary of tensors, which can be nested.

    Names are joined by dots. `values` has the entries that are no tensors, such as the training
    step; the state of an optimizer and the like is passed over, which `notes` say. The file is read
    without running code from it. Needs PyTorch.
    """

    def __init__(self, path: Path):
        """ConversionError: PyTorch is not installed or refuses the file, or the file holds other
        things than plain tensors under names of their own."""
        self.path = path
        self._lock = threading.Lock()
        self._mapped, self._read_bytes = None, 0
        self.specs: dict[str, TensorSpec] = {}
        self.values: dict[str, Any] = {}
        self._passed_over: dict[str, int] = {}
        for name, value in self._contents(0).items():
            if _is_tensor(value):
                self.specs[name] = self._spec(name, value)
            elif _count_tensors(value):
                advice = (
                    "; this is how a moving average (EMA) is stored apart from its model: copy it "
                    "into the model and save that one's state_dict()"
                    if re.search(r"(^|[._])(shadow|ema)", name)
                    else ""
                )
                raise ConversionError(
                    f"{path}: {name} is a {type(value).__name__} with tensors in it, which have no "
                    f"names{advice}"
                )
            else:
                self.values[name] = value
        named = ", ".join(f"{key} ({count} tensors)" for key, count in self._passed_over.items())
        self.notes = (f"not read: {named}",) if named else ()
        if named and not self.specs:
            raise ConversionError(
                f"{path}: holds no weights but the state of a training run: {named}; the weights "
                "are in another file of that run"
            )

    def read(self, name: str) -> np.ndarray:
        """ConversionError: the file changed since it was opened."""
        spec = self.specs[name]
        tensor = self._contents(tensor_bytes(spec)).get(name)
        if not _is_tensor(tensor) or self._spec(name, tensor) != spec:
            raise ConversionError(f"{self.path}: has another {name} than before")
        tensor = tensor.contiguous()
        bits = tensor.view(_torch().uint8) if tensor.dim() else tensor[None].view(_torch().uint8)
        return np.array(bits.numpy()).view(spec.dtype).reshape(spec.shape)

    def _contents(self, size: int) -> dict[str, Any]:
        """Everything in the file, memory-mapped, of which the caller will read `size` bytes."""
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
        kept = {}
        for key, value in whole.items():
            count = _count_tensors(value) if _TRAINING.match(str(key).lower()) else 0
            if count:
                self._passed_over[key] = count
            else:
                kept[key] = value
        try:
            return flatten(kept)
        except RecursionError:
            raise ConversionError(f"{self.path}: its dictionaries are nested without end") from None
        except ConversionError as error:
            raise ConversionError(f"{self.path}: {error}") from None

    def _spec(self, name: str, tensor: Any) -> TensorSpec:
        """ConversionError: the tensor is not a plain one, or has a dtype that no weight has."""
        if kind := _special(tensor):
            raise ConversionError(f"{self.path}: {name} is {kind}, expected a plain tensor")
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in _TORCH_DTYPES:
            raise ConversionError(f"{self.path}: {name} is of {dtype}, which no weight is")
        return TensorSpec(tuple(tensor.shape), _TORCH_DTYPES[dtype], str(self.path))


class TensorName(str):
    """The name of a source's tensor, as a placeholder for the tensor in what is to be written."""


def write_torch_file(
    path: Path,
    contents: Mapping[str, Any],
    source: TensorSource,
    progress: Progress = lambda size: None,
) -> None:
    """Write nested dictionaries of plain values and `TensorName`s with `torch.save`.

    A name that occurs twice is one tensor, stored once. Tensors are read in the order of the source
    into files in a folder beside `path`, which PyTorch then maps: this takes twice the disk space
    while it saves, but no more memory than one tensor. `progress` counts each byte twice.
    ConversionError: PyTorch is not installed or cannot write the file; also what `read_checked`
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
        except RuntimeError as error:  # also if the disk is full
            raise ConversionError(f"{path}: PyTorch cannot write it: {error}") from error
    for tensor in tensors.values():
        progress(tensor.nbytes)


def _mapped(source: TensorSource, name: str, file: Path):
    """Copy a tensor of a source to an unlinked file, as a PyTorch tensor that is mapped from it."""
    torch = _torch()
    spec, data = source.specs[name], read_bytes(source, name)
    # Writing reports a full disk as an error; filling a mapped file would end the process.
    file.write_bytes(data.data)
    storage = torch.UntypedStorage.from_file(str(file), shared=False, nbytes=data.nbytes)
    file.unlink()
    return torch.empty(0, dtype=getattr(torch, spec.dtype.name)).set_(storage).view(spec.shape)


def _filled(contents: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The contents with tensors in place of names. Ordered dictionaries, as in a module's state,
    stay ordered dictionaries."""
    filled = OrderedDict() if isinstance(contents, OrderedDict) else {}
    for key, value in contents.items():
        if isinstance(value, Mapping):
            value = _filled(value, tensors)
        filled[key] = tensors[value] if isinstance(value, TensorName) else value
    return filled


_NAMES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "uint8", "int8", "bool")
_NAMES += ("float8_e4m3fn", "float8_e5m2")
_TORCH_DTYPES = {name: np.dtype(name) for name in _NAMES}
_LOADING = threading.Lock()  # the globals that PyTorch lets a file ask for are those of the process


class Placeholder:
    """Stands for an object beside the weights, such as an argparse.Namespace, whose class is not
    wanted. It keeps what it is made of, and runs nothing."""

    def __new__(cls, *arguments):
        made = object.__new__(cls)
        made.contents = [arguments]
        return made

    def __init__(self, *arguments):
        pass

    def __setstate__(self, state):
        self.contents.append(state)


def _load(path: Path) -> Any:
    """The contents of a file, memory-mapped. ConversionError: PyTorch refuses it, for instance
    because its tensors are of classes of their own."""
    torch = _torch()
    asked = []
    try:
        with path.open("rb") as file:
            if file.read(len(LEGACY)) == LEGACY:
                raise ConversionError(
                    f"{path}: is in the format that PyTorch had before 1.6, which is not read "
                    "here; save it again with PyTorch 1.6 or newer"
                )
        asked = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        if not any(map(_makes_tensors, asked)):
            placeholders = [(type(name, (Placeholder,), {}), name) for name in asked]
            with _LOADING, torch.serialization.safe_globals(placeholders):
                return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except ConversionError:
        raise
    except Exception as error:  # PyTorch's own, pickle's or the zip reader's
        # Without the cause: PyTorch's message advises to run the code.
        reason = _reason(str(error))
        if asked and not reason:
            reason = f": it asks for {', '.join(asked[:3])}; save its state_dict() alone"
        raise ConversionError(f"{path}: {_REFUSED}{reason}") from None
    name = next(filter(_makes_tensors, asked))
    advice = _advice(name) or "; save its state_dict() alone"
    raise ConversionError(f"{path}: {_REFUSED}: it asks for {name}{advice}")


_REFUSED = "PyTorch cannot read it as weights alone, without running code from it"
_TENSOR_CLASSES = {
    "torch.distributed": "a shard of distributed weights (FSDP, DTensor): gather the full "
    "state_dict() and save that",
    "torch.nn": "a whole module: save its state_dict()",
    "torch.fx": "a whole program: save the state_dict() of its module",
    "torchao": QUANTISED,
    "bitsandbytes": QUANTISED,
    "optimum": QUANTISED,
}


def _makes_tensors(name: str) -> bool:
    """Whether a global is PyTorch's, or one that makes tensors of another class than the plain one,
    so that no placeholder may stand for it."""
    return name.partition(".")[0] in ("torch", "torchao", "bitsandbytes", "optimum")


def _advice(name: str) -> str:
    kind = next((kind for start, kind in _TENSOR_CLASSES.items() if name.startswith(start)), "")
    return f", {kind}" if kind else ""


def _reason(message: str) -> str:
    """The reason that PyTorch's message gives, as the end of a sentence; empty if it gives none."""
    if refused := re.search(r"GLOBAL ([\w.]+)", message):
        return f": it asks for {refused[1]}"
    first = next(iter(message.splitlines()), "")
    return f": {first}" if first and "weights_only" not in first else ""


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _torch().Tensor)


def _special(tensor: Any) -> str | None:
    """The kind of a tensor whose numbers do not lie in memory as its shape says; else None."""
    if tensor.is_nested:
        return "nested"
    if tensor.layout != _torch().strided:
        return f"sparse ({tensor.layout})"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    if tensor.is_meta:
        return "without numbers (meta)"
    if type(tensor) in (_torch().Tensor, _torch().nn.Parameter):
        return None
    return f"a {type(tensor).__name__}{_advice(type(tensor).__module__)}"


def _count_tensors(value: Any) -> int:
    """The count of tensors in a value, wherever in it they are."""
    torch, seen, open_, count = _torch(), set(), [value], 0
    while open_:
        value = open_.pop()
        count += isinstance(value, (torch.Tensor, torch.TypedStorage, torch.UntypedStorage))
        if isinstance(value, Placeholder):
            value = value.contents
        if id(value) not in seen and isinstance(value, (Mapping, list, tuple, set, frozenset)):
            seen.add(id(value))
            open_ += value.values() if isinstance(value, Mapping) else value
    return count


def _torch():
    """The module torch. ConversionError: it is not installed, or too old to read files safely."""
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
