"""Tables that say where each tensor of a foreign layout goes in a parameter tree.

A foreign layout is a flat dictionary from names to arrays; ours is a nested dictionary in
which the layers of a group are stacked on a leading axis. The same table is read in both
directions. Nothing is lost or made up on the way: a missing, unexpected or misshapen tensor is
an error that names it.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.parameters import flatten, unflatten
from imagewam_jax.weights.io.tensors import (
    DTYPES,
    ArraySource,
    TensorSource,
    TensorSpec,
    contiguous,
    dtype_name,
    read_checked,
)

# Tensors that are read and transposed at a time: more of them are more memory than speed.
AHEAD = 2
LAYER = "{i}"  # stands for the layer number in names of tensors that are stacked


@dataclass(frozen=True)
class Part:
    """A slice of a foreign tensor, and what it is called here.

    `path` is dotted; `pattern` is an einops pattern from the foreign axes to ours, `sizes`
    the axis sizes that it needs; `width` is how much the slice takes of the foreign tensor's
    split axis (None: all). `flip` is an axis of ours that runs the other way there.
    """

    path: str
    pattern: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    width: int | None = None
    flip: int | None = None

    def ours(self, foreign: np.ndarray) -> np.ndarray:
        """The slice in our axes."""
        array = rearrange(foreign, self.pattern, **self.sizes)
        return array if self.flip is None else np.flip(array, self.flip)

    def foreign(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `ours`."""
        array = ours if self.flip is None else np.flip(ours, self.flip)
        left, right = self.pattern.split(" -> ")
        return rearrange(array, f"{right} -> {left}", **self.sizes)


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

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The slices that the parts are made of."""
        widths = [part.width for part in self.parts]
        if None in widths:
            return [tensor]
        return np.split(tensor, np.cumsum(widths)[:-1], axis=self.axis)


def rule(name: str, path: str, pattern: str, *, layers: int | None = None, **sizes: int) -> Rule:
    """The common case: one foreign tensor is one of ours."""
    return Rule(name, (Part(path, pattern, sizes),), layers=layers)


def under(rules: Sequence[Rule], *, prefix: str = "", path: str = "") -> list[Rule]:
    """The same rules with a prefix of the foreign names, and below a path of our tree."""

    def below(part: Part) -> Part:
        return Part(f"{path}.{part.path}", part.pattern, part.sizes, part.width, part.flip)

    return [
        Rule(prefix + r.name, tuple(map(below, r.parts)) if path else r.parts, r.axis, r.layers)
        for r in rules
    ]


class Piece(NamedTuple):
    """A part of one array of a tree: `layer` of a stacked one, or all of it (None)."""

    path: str  # dotted
    layer: int | None
    array: np.ndarray


def foreign_shapes(rules: Sequence[Rule], like: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every foreign tensor, from the shapes of our tree."""
    flat, shapes = flatten(like), {}
    for r in rules:
        parts = []
        for part in r.parts:
            if part.path not in flat:
                raise ConversionError(f"the model has no {part.path}, which its mapping speaks of")
            shape = tuple(flat[part.path].shape)[0 if r.layers is None else 1 :]
            parts.append(part.foreign(np.broadcast_to(np.int8(0), shape)).shape)
        shape = list(parts[0])
        if len(parts) > 1:
            shape[r.axis] = sum(part[r.axis] for part in parts)
        shapes |= dict.fromkeys(r.names(), tuple(shape))
    return shapes


def check(
    rules: Sequence[Rule], specs: Mapping[str, TensorSpec], like: Mapping[str, Any], what: str
) -> None:
    """ConversionError unless `specs` are exactly the tensors that the rules make of `like`.

    Looks at names, shapes and dtypes alone, so that it costs nothing before a long conversion.
    `what` names the source.
    """
    paths = {part.path for r in rules for part in r.parts}
    if differing := sorted(paths ^ set(flatten(like))):
        raise ConversionError(f"{what}: not both in the model and in its mapping: {differing}")
    shapes = foreign_shapes(rules, like)
    missing, unexpected = sorted(shapes.keys() - specs), sorted(specs.keys() - shapes.keys())
    if missing or unexpected:
        raise ConversionError(
            f"{what}: {len(missing)} tensors missing {_some(missing)}, "
            f"{len(unexpected)} unexpected {_some(unexpected)}"
        )
    for name, shape in shapes.items():
        spec = specs[name]
        if tuple(spec.shape) != shape:
            raise ConversionError(
                f"{spec.file}: {name} has shape {tuple(spec.shape)}, expected {shape}"
            )
        if spec.dtype not in DTYPES:
            raise ConversionError(
                f"{spec.file}: {name} is of {spec.dtype}, expected {dtype_name(DTYPES)}"
            )
    tree_dtypes(rules, specs)


def tree_dtypes(rules: Sequence[Rule], specs: Mapping[str, TensorSpec]) -> dict[str, np.dtype]:
    """The dtype of each array of our tree; ConversionError where one would have several."""
    dtypes: dict[str, np.dtype] = {}
    for r in rules:
        for part in r.parts:
            for name in r.names():
                found = np.dtype(specs[name].dtype)
                if dtypes.setdefault(part.path, found) != found:
                    raise ConversionError(
                        f"{specs[name].file}: {name} is of {found}, other layers of it are of "
                        f"{dtypes[part.path]}"
                    )
    return dtypes


def pieces(rules: Sequence[Rule], source: TensorSource) -> Iterator[Piece]:
    """Our arrays, layer by layer; each foreign tensor is read once and then forgotten.

    The next ones are made while one is in use, in threads. The source must have passed `check`.
    Errors are those of `read_checked`.
    """
    names = [
        (r, None if r.layers is None else i, n) for r in rules for i, n in enumerate(r.names())
    ]

    def make(number: int) -> list[Piece]:
        r, layer, name = names[number]
        slices = r.split(read_checked(source, name))
        return [
            Piece(part.path, layer, contiguous(part.ours(piece)))
            for part, piece in zip(r.parts, slices, strict=True)
        ]

    with ThreadPoolExecutor(AHEAD) as pool:
        making = deque(pool.submit(make, number) for number in range(min(AHEAD, len(names))))
        try:
            for number in range(len(names)):
                made = making.popleft().result()
                if number + AHEAD < len(names):
                    making.append(pool.submit(make, number + AHEAD))
                yield from made
        finally:
            pool.shutdown(cancel_futures=True)


def stacked_paths(rules: Sequence[Rule]) -> frozenset[str]:
    """The paths of arrays that come layer by layer."""
    return frozenset(part.path for r in rules if r.layers is not None for part in r.parts)


def to_tree(
    rules: Sequence[Rule],
    source: TensorSource | Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    what: str,
) -> dict[str, Any]:
    """The nested dictionary that a source stands for, in memory.

    `like` is the nested dictionary of the model that it is for, of anything with a shape
    (say `jax.ShapeDtypeStruct`); dtypes stay those of the source. Errors are those of `check`
    and `pieces`.
    """
    source = ArraySource(source, what) if isinstance(source, Mapping) else source
    check(rules, source.specs, like, what)
    layers: dict[str, list[np.ndarray]] = {}
    for piece in pieces(rules, source):
        layers.setdefault(piece.path, []).append(piece.array)
    stacked = stacked_paths(rules)
    return unflatten({k: np.stack(v) if k in stacked else v[0] for k, v in layers.items()})


def _some(names: list[str], limit: int = 8) -> str:
    return f"({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})" if names else ""
