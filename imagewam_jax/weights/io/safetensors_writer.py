"""Writes safetensors files of tensors that are read one at a time.

The library's own `save_file` needs all tensors in memory. The format is small: the length of a JSON
header as 8 bytes, the header, and the tensors back to back in the header's order.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.files import INDEX, SAFETENSORS_DTYPES
from imagewam_jax.weights.io.tensors import (
    Progress,
    TensorSource,
    TensorSpec,
    read_bytes,
    source_bytes,
    tensor_bytes,
)

METADATA = {"format": "pt"}  # required by transformers and diffusers
_NAMES = {np.dtype(dtype): name for name, dtype in SAFETENSORS_DTYPES.items()}


def write_safetensors(
    path: Path,
    source: TensorSource,
    *,
    names: Sequence[str] | None = None,
    progress: Progress = lambda size: None,
) -> None:
    """Write the tensors of a source, or only those in `names`, to one file.

    They are read in the order of the source, wide dtypes first, so that every tensor is aligned.
    ConversionError: the format lacks a tensor's dtype; also what `read_checked` raises.
    """
    wanted = source.specs if names is None else names
    ordered = sorted(wanted, key=lambda name: -source.specs[name].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": METADATA}
    end = 0
    for name in ordered:
        spec = source.specs[name]
        start, end = end, end + tensor_bytes(spec)
        if spec.dtype not in _NAMES:
            raise ConversionError(f"{name} is of {spec.dtype}, which safetensors files cannot hold")
        header[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in ordered:
            file.write(read_bytes(source, name).data)
            progress(tensor_bytes(source.specs[name]))


def write_sharded(
    folder: Path,
    stem: str,
    source: TensorSource,
    *,
    max_bytes: int,
    progress: Progress = lambda size: None,
) -> None:
    """Write `<stem>.safetensors`, or several files of at most `max_bytes` of tensors and an index.

    A larger tensor gets a file of its own. The files have the names that transformers and diffusers
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
