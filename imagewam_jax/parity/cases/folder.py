"""A folder of recorded tensors, on disk or still in memory."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.files import open_weights
from imagewam_jax.weights.io.tensors import ArraySource, TensorSource, read_checked
from imagewam_jax.weights.io.text_files import read_json
from imagewam_jax.weights.layouts.metadata import find

CONFIG = "config.json"
NORMS = "grad_norms.json"


class Tensors:
    """The tensors of one file, each read when it is asked for; also a `TensorSource`.

    `unread` holds the names of those that nobody has asked for, which were not verified.
    """

    def __init__(self, file: str, source: TensorSource):
        self.file, self.specs = file, source.specs
        self.unread = set(source.specs)
        self._source = source

    def __contains__(self, name: str) -> bool:
        return name in self.specs

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __getitem__(self, name: str) -> np.ndarray:
        """ConversionError: there is none, or it holds a NaN or an infinity."""
        if name not in self:
            raise ConversionError(f"{self.file}: no {name}, which is needed with what is there")
        return read_checked(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """A tensor, or the default where there is none."""
        if name not in self:
            return default
        return self[name]

    def read(self, name: str) -> np.ndarray:
        """See `TensorSource`."""
        self.unread.discard(name)
        return self._source.read(name)


class Folder:
    """The files of one recorded case, and the hyper-parameters in its `config.json`."""

    def __init__(self, path: Path, files: Mapping[str, Tensors], config: Mapping[str, Any]):
        self.path, self.files, self.config = path, dict(files), config

    def having(self, *names: str) -> Tensors | None:
        """The first file that has all of these tensors."""
        return next((f for f in self.files.values() if all(name in f for name in names)), None)

    def need(self, *names: str) -> Tensors:
        """The same. ConversionError: there is none."""
        file = self.having(*names)
        if file is None:
            raise ConversionError(f"{self.path}: no file with the tensors {', '.join(names)}")
        return file

    def setting(self, key: str) -> Any:
        """A value of the config, by its dotted path. ConversionError: there is none."""
        value = find(self.config, key)
        if value is None:
            raise ConversionError(f"{self.path / CONFIG}: no {key}, which is needed to repeat it")
        return value


# What recordings are saved in, best first: a folder's recording is in the first that it has.
SUFFIXES = (".safetensors", ".npz", ".pt", ".pth")


def read_folder(path: Path) -> Folder:
    """ConversionError: something in it cannot be read."""
    files = {recorded_name(p): Tensors(str(p), _open(p)) for p in _recordings(path)}
    if (path / NORMS).is_file():
        norms = {name: np.float64(norm) for name, norm in read_json(path / NORMS).items()}
        files[NORMS] = Tensors(str(path / NORMS), ArraySource(norms, str(path / NORMS)))
    config = read_json(path / CONFIG) if (path / CONFIG).is_file() else {}
    return Folder(path, files, config)


def recorded_folders(path: Path) -> list[Path]:
    """The folder itself, or those in it. ConversionError: there are no tensors in either."""
    if not path.is_dir():
        raise ConversionError(f"{path}: no such folder of recorded tensors")
    if _recordings(path):
        return [path]
    folders = sorted(p for p in path.iterdir() if p.is_dir() and _recordings(p))
    if not folders:
        raise ConversionError(
            f"{path}: no recording in it or in the folders below it, expected files of "
            f"{', '.join(SUFFIXES)}"
        )
    return folders


def recorded_name(path: Path) -> str:
    """What a file of a recording is called, whatever it is saved in."""
    return path.with_suffix(SUFFIXES[0]).name


def _recordings(path: Path) -> list[Path]:
    found = (sorted(path.glob(f"*{suffix}")) for suffix in SUFFIXES)
    return next((paths for paths in found if paths), [])


def _open(path: Path) -> TensorSource:
    return _read_npz(path) if path.suffix == ".npz" else open_weights(path)


def _read_npz(path: Path) -> ArraySource:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConversionError(f"{path}: cannot be read: {error}") from error
    for name, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise ConversionError(
                f"{path}: {name} is of {array.dtype}, expected numbers; save bfloat16 as float32"
            )
    return ArraySource(arrays, str(path))
