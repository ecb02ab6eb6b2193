"""Reads weights on disk: safetensors files and folders, and by `open_weights` also `.pt` files."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from imagewam_jax.errors import ConversionError
from imagewam_jax.files import SAFETENSORS_DTYPES
from imagewam_jax.weights.io.tensors import Joined, TensorSource, TensorSpec, tensor_bytes
from imagewam_jax.weights.io.torch_files import LEGACY, ZIP, TorchFile

INDEX = ".safetensors.index.json"


class SafetensorsFile:
    """One safetensors file.

    The library validates the file. Tensors are read from the offsets in its header into memory of
    their own: the memory map that the library reads through counts as resident, and is slower.
    """

    def __init__(self, path: Path):
        """ConversionError: the file is not a safetensors file, or is cut off."""
        self.path = path
        try:
            with safe_open(path, framework="numpy"), path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (SafetensorError, OSError) as error:
            raise ConversionError(f"{path}: not a whole safetensors file: {error}") from error
        header.pop("__metadata__", None)
        self._start = {name: 8 + length + t["data_offsets"][0] for name, t in header.items()}
        self.specs: dict[str, TensorSpec] = {}
        for name, tensor in header.items():
            dtype = SAFETENSORS_DTYPES.get(tensor["dtype"])
            if dtype is None:
                raise ConversionError(f"{path}: {name} is of {tensor['dtype']}, which no weight is")
            self.specs[name] = TensorSpec(tuple(tensor["shape"]), np.dtype(dtype), str(path))

    def read(self, name: str) -> np.ndarray:
        """ConversionError: the file changed since it was opened."""
        spec = self.specs[name]
        data = np.empty(tensor_bytes(spec), np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self._start[name])
                unread = memoryview(data)
                while unread and (count := file.readinto(unread)):
                    unread = unread[count:]
        except OSError as error:
            raise ConversionError(f"{self.path}: {name} cannot be read: {error}") from error
        if unread:
            raise ConversionError(f"{self.path}: ends within {name}, and did not before")
        return data.view(spec.dtype).reshape(spec.shape)


class SafetensorsFolder(Joined):
    """The safetensors files of a folder: those that its index names, or all if it has no index."""

    def __init__(self, folder: Path):
        """ConversionError: there is no file, or the index and the files do not agree."""
        indexes = sorted(folder.glob(f"*{INDEX}"))
        if len(indexes) > 1:
            raise ConversionError(f"{folder}: several index files, {[p.name for p in indexes]}")
        if indexes:
            names = _read_index(indexes[0])
            paths = [folder / file for file in sorted(set(names.values()))]
            for path in paths:
                if not path.is_file():
                    raise ConversionError(f"{path}: missing, but {indexes[0].name} names it")
        else:
            paths = sorted(folder.glob("*.safetensors"))
            if not paths:
                found = sorted(p.name for p in folder.iterdir())[:8]
                raise ConversionError(f"{folder}: no safetensors file in it; found {found}")
        super().__init__(*map(SafetensorsFile, paths))
        if indexes:
            _check_index(names, self.specs, indexes[0])


def open_weights(path: Path) -> TensorSource:
    """The tensors of a file or folder. ConversionError: there is nothing that can be read."""
    try:
        if not path.exists():
            raise ConversionError(f"{path}: no such file or folder")
        if path.is_dir():
            return SafetensorsFolder(path)
        with path.open("rb") as file:
            start = file.read(len(ZIP))
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error}") from error
    # The content decides. A safetensors file begins with the length of its header, whose first two
    # bytes can be any; the four of a zip archive would mean a header of 67 MB, which no model has.
    return TorchFile(path) if start in (ZIP, LEGACY) else SafetensorsFile(path)


def file_checksums(path: Path) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of every file that `open_weights` reads."""
    specs = {} if path.is_file() else open_weights(path).specs
    files = sorted({Path(spec.file) for spec in specs.values()}) or [path]
    total = sum(file.stat().st_size for file in files)
    found = []
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"checksum of {path.name}") as bar:
        for file in files:
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while block := stream.read(2**24):
                    digest.update(block)
                    bar.update(len(block))
            found.append(
                {"file": file.name, "bytes": file.stat().st_size, "sha256": digest.hexdigest()}
            )
    return found


def _read_index(path: Path) -> dict[str, str]:
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConversionError(f"{path}: not an index of safetensors files: {error!r}") from error
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise ConversionError(
            f"{path}: not an index of safetensors files: weight_map is not of names and files"
        )
    return names


def _check_index(names: Mapping[str, str], specs: Mapping[str, TensorSpec], index: Path) -> None:
    if differing := sorted(names.keys() ^ specs.keys()):
        raise ConversionError(
            f"{index}: {len(differing)} tensors are not both in the index and in the files, such "
            f"as {differing[0]}"
        )
    for name, file in names.items():
        if Path(specs[name].file).name != file:
            raise ConversionError(
                f"{index}: {name} should be in {file}, it is in {specs[name].file}"
            )
