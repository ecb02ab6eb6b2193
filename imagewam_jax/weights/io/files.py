"""Reads weights on disk: files of safetensors and of PyTorch, and folders of them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from tqdm import tqdm

from imagewam_jax.errors import ConversionError
from imagewam_jax.files import SAFETENSORS_DTYPES
from imagewam_jax.weights.io.folders import (
    ChosenFiles,
    ShardIndex,
    chosen_files,
    indexed_files,
    refuse_shard,
)
from imagewam_jax.weights.io.stand_ins import AGAIN, refuse_stand_in
from imagewam_jax.weights.io.tensors import QUANTISED, Joined, TensorSpec, tensor_bytes
from imagewam_jax.weights.io.torch_files import LEGACY, ZIP, TorchFile


class SafetensorsFile:
    """One safetensors file.

    The library validates the file. Tensors are read from the offsets in its header into memory of
    their own: the memory map that the library reads through counts as resident, and is slower.
    """

    def __init__(self, path: Path):
        """ConversionError: the file is not a safetensors file, or is cut off."""
        self.path = path
        self.values: dict[str, Any] = {}  # what a file holds besides tensors: nothing
        self.notes: tuple[str, ...] = ()
        try:
            with safe_open(path, framework="numpy"), path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except (SafetensorError, OSError) as error:
            fault = _wrong_size(path) or str(error)
            raise ConversionError(f"{path}: not a whole safetensors file: {fault}") from error
        header.pop("__metadata__", None)
        self._start = {name: 8 + length + t["data_offsets"][0] for name, t in header.items()}
        self.specs: dict[str, TensorSpec] = {}
        for name, tensor in header.items():
            dtype = SAFETENSORS_DTYPES.get(tensor["dtype"])
            if dtype is None:
                kind = f"{QUANTISED}: " if tensor["dtype"].startswith(("F4", "F6", "F8")) else ""
                raise ConversionError(
                    f"{path}: {kind}{name} is of {tensor['dtype']}, which no weight is"
                )
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


class WeightsFolder(Joined):
    """Files of a folder that together hold some weights."""

    def __init__(self, folder: Path, chosen: ChosenFiles):
        """ConversionError: a file cannot be read, or the index and the files do not agree."""
        files = [_open_file(path) for path in chosen.paths]
        try:
            super().__init__(*files)
        except ConversionError as error:
            raise ConversionError(
                f"{folder}: {error}: where these are variants of the same weights, give the one "
                "file to take, not the folder"
            ) from error
        self.values = files[0].values if len(files) == 1 else {}
        self.notes = chosen.notes + tuple(note for file in files for note in file.notes)
        if chosen.index:
            _check_index(chosen.index, self)


def open_weights(path: Path) -> SafetensorsFile | TorchFile | WeightsFolder:
    """The tensors of a file, a folder, or the shards of an index. ConversionError: there is nothing
    that can be read, or it is not clear which files are meant."""
    try:
        if not path.exists() and not path.is_symlink():
            raise ConversionError(f"{path}: no such file or folder{_remote_hint(path)}")
        chosen = chosen_files(path) if path.is_dir() else indexed_files(path)
        if chosen is not None:
            return WeightsFolder(path if path.is_dir() else path.parent, chosen)
        refuse_shard(path)
        return _open_file(path)
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error}") from error


def _open_file(path: Path) -> SafetensorsFile | TorchFile:
    refuse_stand_in(path)
    with path.open("rb") as file:
        start = file.read(len(ZIP))
    # The content decides. A safetensors file begins with the length of its header, whose first two
    # bytes can be any; the four of a zip archive would mean a header of 67 MB, which no model has.
    return TorchFile(path) if start in (ZIP, LEGACY) else SafetensorsFile(path)


def _remote_hint(path: Path) -> str:
    """Advice for a path that may be meant as the name of a repository; else empty."""
    text = str(path)
    if text.startswith(("http:", "https:", "hf:", "s3:", "gs:")):
        return "; weights are read from this machine's disk: download them first"
    if text.count("/") == 1 and not text.startswith((".", "~", "/")) and not path.parent.exists():
        return (
            f"; if it is a name on Hugging Face, get it first: hf download {text} --local-dir DIR"
        )
    return ""


def _wrong_size(path: Path) -> str | None:
    """How the size of a safetensors file differs from what its header says; None if it does not, or
    if there is no header."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            header = json.loads(file.read(length)) if length < size else {}
        tensors = [value for name, value in header.items() if name != "__metadata__"]
        whole = 8 + length + max(tensor["data_offsets"][1] for tensor in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if size < whole:
        return f"it is cut off, {size:,} of {whole:,} bytes are there: {AGAIN}"
    return f"{size - whole:,} bytes follow its end: {AGAIN}" if size > whole else None


def file_checksums(path: Path) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of every file that `open_weights` reads."""
    files = sorted({Path(spec.file) for spec in open_weights(path).specs.values()})
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


def _check_index(index: ShardIndex, folder: WeightsFolder) -> None:
    if differing := sorted(index.files.keys() ^ folder.specs.keys()):
        raise ConversionError(
            f"{index.path}: {len(differing)} tensors are not both in the index and in the files, "
            f"such as {differing[0]}"
        )
    for name, file in index.files.items():
        if Path(folder.specs[name].file).name != file:
            raise ConversionError(
                f"{index.path}: {name} should be in {file}, it is in {folder.specs[name].file}"
            )
