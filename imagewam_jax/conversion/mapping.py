"""Tables that say where each tensor of a foreign layout goes in a parameter tree.

A foreign layout is a flat dictionary from names to arrays; ours is a nested dictionary in
which the layers of a group are stacked on a leading axis. Nothing is lost or made up on the
way: a missing, unexpected or misshapen tensor is an error that names it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange

LAYER = "{i}"  # stands for the layer number in names of tensors that are stacked


@dataclass(frozen=True)
class Part:
    """A slice of a foreign tensor, and what it is called here.

    `path` is dotted; `pattern` is an einops pattern from the foreign axes to ours, `sizes`
    the axis sizes that it needs; `width` is how much the slice takes of the foreign tensor's
    split axis (None: all).
    """

    path: str
    pattern: str
    sizes: Mapping[str, int]
    width: int | None = None


@dataclass(frozen=True)
class Rule:
    """One foreign tensor, or one per layer where the name has `{i}`.

    Its parts follow each other along `axis`.
    """

    name: str
    parts: tuple[Part, ...]
    axis: int = 0
    layers: int | None = None

    def names(self) -> list[str]:
        if self.layers is None:
            return [self.name]
        return [self.name.replace(LAYER, str(i)) for i in range(self.layers)]


def rule(name: str, path: str, pattern: str, *, layers: int | None = None, **sizes: int) -> Rule:
    """The common case: one foreign tensor is one of ours."""
    return Rule(name, (Part(path, pattern, sizes),), layers=layers)


def to_tree(
    rules: Sequence[Rule], tensors: Mapping[str, np.ndarray], like: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """The nested dictionary that `tensors` stand for.

    `like` is the nested dictionary of the model that it is for, of anything with a shape
    (say `jax.ShapeDtypeStruct`); dtypes stay those of `tensors`. `what` names the source in
    errors. KeyError: a tensor is missing or unexpected. ValueError: a shape differs.
    """
    check_names(rules, tensors, what)
    flat = {}
    for r in rules:
        layers = [_split(r, name, np.asarray(tensors[name]), what) for name in r.names()]
        for part, *arrays in zip(r.parts, *layers, strict=True):
            flat[part.path] = np.stack(arrays) if r.layers is not None else arrays[0]
    expected = {path: tuple(leaf.shape) for path, leaf in flatten(like).items()}
    if missing := sorted(set(expected) ^ set(flat)):
        raise KeyError(f"{what}: not both in the model and in its mapping: {missing}")
    for path, array in flat.items():
        if array.shape != expected[path]:
            raise ValueError(
                f"{what}: {path} has shape {array.shape}, the model expects {expected[path]}"
            )
    return unflatten(flat)


def check_names(rules: Sequence[Rule], tensors: Mapping[str, Any], what: str) -> None:
    """KeyError unless `tensors` has exactly the names that the rules speak of."""
    expected = {name for r in rules for name in r.names()}
    missing, unexpected = sorted(expected - set(tensors)), sorted(set(tensors) - expected)
    if missing or unexpected:
        raise KeyError(
            f"{what}: {len(missing)} tensors missing {_some(missing)}, "
            f"{len(unexpected)} unexpected {_some(unexpected)}"
        )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted paths to leaves of a nested dictionary."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _split(r: Rule, name: str, tensor: np.ndarray, what: str) -> list[np.ndarray]:
    widths = [part.width for part in r.parts]
    if None in widths:
        slices = [tensor]
    elif r.axis >= tensor.ndim or tensor.shape[r.axis] != sum(widths):
        raise ValueError(
            f"{what}: {name} has shape {tensor.shape}, expected {sum(widths)} on axis {r.axis}"
        )
    else:
        slices = np.split(tensor, np.cumsum(widths)[:-1], axis=r.axis)
    try:
        return [
            rearrange(array, part.pattern, **part.sizes)
            for part, array in zip(r.parts, slices, strict=True)
        ]
    except Exception as error:  # einops raises its own type
        raise ValueError(f"{what}: {name} has shape {tensor.shape}: {error}") from error


def _some(names: list[str], limit: int = 8) -> str:
    return f"({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})" if names else ""
