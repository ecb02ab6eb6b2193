"""What is known about foreign weights besides the tensors themselves.

Most sizes follow from shapes. The others are given by the user, stand in a file beside the weights
(a `config.json`, the official training config), or are those of a public model of the same shapes.
A value that contradicts the shapes, or another value, is an error: one of them belongs to other
weights.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.tensors import TensorSpec

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class SourceMetadata:
    """What the files beside some weights say, under their own keys, and what the user overrides,
    under our names. `used` collects the overrides that were asked for."""

    files: Mapping[str, Any]
    overrides: Mapping[str, Any]
    used: set[str] = field(default_factory=set)


Metadata = SourceMetadata | Mapping[str, Any]  # a plain mapping has what files say, no overrides


def size(specs: Specs, name: str, axis: int) -> int:
    """The length of one axis of a tensor. ConversionError: there is no such tensor, or axis."""
    if name not in specs:
        file = next(iter(specs.values())).file if specs else "the weights"
        raise ConversionError(f"{file}: no {name}, whose shape tells a size of the model")
    shape = specs[name].shape
    if axis >= len(shape):
        raise ConversionError(
            f"{specs[name].file}: {name} has shape {shape}, expected at least {axis + 1} axes"
        )
    return int(shape[axis])


def count(specs: Specs, prefix: str) -> int:
    """The number of layers `<prefix>0`, `<prefix>1`, ...: one more than the highest index."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    numbers = [int(m[1]) for name in specs if (m := pattern.match(name))]
    return 1 + max(numbers, default=-1)


def find(metadata: Metadata, *keys: str) -> Any:
    """The override under one of these keys, else the first value in the files, else None.

    A key can be a path into sections: `model.loss.lambda_video`. ConversionError: an override
    contradicts the files.
    """
    known = metadata if isinstance(metadata, SourceMetadata) else SourceMetadata(metadata, {})
    found = {key: value for key in keys if (value := _at(known.files, key)) is not None}
    for key in keys:
        if key in known.overrides:
            known.used.add(key)
            chosen = known.overrides[key]
            for other, value in found.items():
                if value != chosen:
                    raise ConversionError(
                        f"--set {key}={chosen} contradicts {other}={value} of the file beside "
                        "the weights; where it is meant for another source, convert that apart"
                    )
            return chosen
    return next(iter(found.values()), None)


def find_or(metadata: Metadata, default: Any, *keys: str) -> Any:
    """The same, but `default` in place of None."""
    found = find(metadata, *keys)
    return default if found is None else found


def section(metadata: Metadata, *keys: str) -> Mapping[str, Any]:
    """A section of the files, empty if there is none. ConversionError: it is not a mapping."""
    found = find(metadata, *keys)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ConversionError(f"{keys[0]} is {found!r}, expected a section of names and values")
    return found


def agree(sizes: Mapping[str, Any], metadata: Mapping[str, Any], where: str) -> None:
    """ConversionError unless each value in `metadata` that is not None is the one in `sizes`, which
    come from shapes."""
    for name, value in metadata.items():
        if value is not None and value != sizes[name]:
            raise ConversionError(
                f"{where}: {name} is given as {value}, the shapes say {sizes[name]}"
            )


def fill_from_preset(
    sizes: Mapping[str, Any], values: Mapping[str, Any], presets: Iterable[Any], where: str
) -> dict[str, Any]:
    """`values`, with each None replaced by the value of the preset that has these `sizes`.

    ConversionError: no preset has them, so that a value stays unknown.
    """
    preset = next(
        (p for p in presets if all(getattr(p, name) == known for name, known in sizes.items())),
        None,
    )
    filled = {
        name: getattr(preset, name, None) if value is None else value
        for name, value in values.items()
    }
    if missing := sorted(name for name, value in filled.items() if value is None):
        flags = " ".join(f"--set {name}=..." for name in missing)
        raise ConversionError(
            f"{where}: no public model has these sizes, and shapes do not tell {missing}: put the "
            f"config of the model beside the weights, or give {flags}"
        )
    return filled


def _at(files: Mapping[str, Any], key: str) -> Any:
    value: Any = files
    for name in key.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
