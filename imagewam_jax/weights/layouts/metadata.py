"""What is known about foreign weights besides the tensors themselves.

Shapes tell most sizes. The rest is given by the user, or stands in a file beside the weights (a
`config.json`, the official training config), or is that of a public model of the same shapes. A
fact that contradicts the shapes, or another fact, is an error: one of them is of other weights.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.tensors import TensorSpec

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True)
class Known:
    """Facts of the files beside some weights, as they stand there, and what the user gives, by our
    names. `used` are those of the user's that were asked for."""

    files: Mapping[str, Any]
    given: Mapping[str, Any]
    used: set[str] = field(default_factory=set)


Facts = Known | Mapping[str, Any]  # the latter: of files alone


def size(specs: Specs, name: str, axis: int) -> int:
    """One dimension of a tensor. ConversionError: there is no such tensor, or dimension."""
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
    """How many of `<prefix>0`, `<prefix>1`, ... there are: one more than the highest number."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    numbers = [int(m[1]) for name in specs if (m := pattern.match(name))]
    return 1 + max(numbers, default=-1)


def find(facts: Facts, *keys: str) -> Any:
    """What the user gives under one of these keys, else the first that is in the files; or None.

    A key can be a path into sections: `model.loss.lambda_video`. ConversionError: the user gives
    something else than the files say.
    """
    files, given = (facts.files, facts.given) if isinstance(facts, Known) else (facts, {})
    found = {key: value for key in keys if (value := _at(files, key)) is not None}
    for key in keys:
        if key in given:
            facts.used.add(key)
            for other, value in found.items():
                if value != given[key]:
                    raise ConversionError(
                        f"--set {key}={given[key]} contradicts {other}={value} of the file beside "
                        "the weights; where it is meant for another source, convert that apart"
                    )
            return given[key]
    return next(iter(found.values()), None)


def section(facts: Facts, *keys: str) -> Mapping[str, Any]:
    """A section of the files, empty where there is none. ConversionError: it is something else."""
    found = find(facts, *keys)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise ConversionError(f"{keys[0]} is {found!r}, expected a section of names and values")
    return found


def agree(told: Mapping[str, Any], facts: Mapping[str, Any], where: str) -> None:
    """ConversionError unless each fact that is there is what the shapes tell."""
    for name, value in facts.items():
        if value is not None and value != told[name]:
            raise ConversionError(
                f"{where}: {name} is given as {value}, the shapes say {told[name]}"
            )


def untold(
    told: Mapping[str, Any], found: Mapping[str, Any], presets: Iterable[Any], where: str
) -> dict[str, Any]:
    """The values of `found`, those that are None from the preset that has the sizes `told`.

    ConversionError: there is none, so that nothing says what they are.
    """
    preset = next(
        (p for p in presets if all(getattr(p, name) == value for name, value in told.items())), None
    )
    values = {
        name: getattr(preset, name, None) if value is None else value
        for name, value in found.items()
    }
    if missing := sorted(name for name, value in values.items() if value is None):
        flags = " ".join(f"--set {name}=..." for name in missing)
        raise ConversionError(
            f"{where}: no public model has these sizes, and shapes do not tell {missing}: put the "
            f"config of the model beside the weights, or give {flags}"
        )
    return values


def _at(files: Mapping[str, Any], key: str) -> Any:
    value: Any = files
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
