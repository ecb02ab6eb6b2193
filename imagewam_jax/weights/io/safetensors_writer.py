"""Writes safetensors files of tensors that are read one at a time."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from imagewam_jax.errors import ConversionError
from imagewam_jax.files import SAFETENSORS_DTYPES, stream_safetensors
from imagewam_jax.weights.io.folders import INDEX
from imagewam_jax.weights.io.tensors import (
    Progress,
    TensorSource,
    TensorSpec,
    read_bytes,
    source_bytes,
    tensor_bytes,
)

METADATA = {"format": "pt"}  # transformers and diffusers ask for it
_DTYPES = {np.dtype(dtype) for dtype in SAFETENSORS_DTYPES.values()}


def write_safetensors(
    path: Path,
    source: TensorSource,
    *,
    names: Sequence[str] | None = None,
    metadata: Mapping[str, str] = METADATA,
    progress: Progress = lambda size: None,
) -> None:
    """Some tensors of a source, or all of them, as one file.

    They are read in the order of the source, wide dtypes first, so that every tensor is aligned.
    ConversionError: a tensor is of a dtype that the format lacks, or what `read_checked` raises.
    """
    wanted = source.specs if names is None else names
    ordered = sorted(wanted, key=lambda name: -source.specs[name].dtype.itemsize)
    tensors = {name: (source.specs[name].shape, source.specs[name].dtype) for name in ordered}
    for name, (_, dtype) in tensors.items():
        if dtype not in _DTYPES:
            raise ConversionError(f"{name} is of {dtype}, which safetensors files cannot hold")

    def pieces() -> Iterator[np.ndarray]:
        for name in ordered:
            yield read_bytes(source, name)
            progress(tensor_bytes(source.specs[name]))

    with path.open("wb") as file:
        stream_safetensors(file, tensors, pieces(), metadata)


def write_sharded(
    folder: Path,
    stem: str,
    source: TensorSource,
    *,
    max_bytes: int,
    progress: Progress = lambda size: None,
) -> None:
    """`<stem>.safetensors`, or several files of at most `max_bytes` of tensors and their index.

    A tensor that is larger has a file of its own. Names are those that transformers and diffusers
    look for. Errors are those of `write_safetensors`.
    """
    shards = list(_shards(source.specs, max_bytes))
    if len(shards) == 1:
        write_safetensors(folder / f"{stem}.safetensors", source, progress=progress)
        return
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, source, names=names, progress=progress)
        weight_map |= dict.fromkeys(names, file)
    index = {
        "metadata": {"total_size": source_bytes(source)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / f"{stem}{INDEX}").write_text(json.dumps(index, indent=2) + "\n")


def _shards(specs: Mapping[str, TensorSpec], max_bytes: int) -> Iterator[list[str]]:
    names, size = [], 0
    for name, spec in specs.items():
        if names and size + tensor_bytes(spec) > max_bytes:
            yield names
            names, size = [], 0
        names.append(name)
        size += tensor_bytes(spec)
    yield names
