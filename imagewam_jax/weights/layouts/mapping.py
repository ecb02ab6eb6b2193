"""Tables that say where each tensor of a foreign layout goes in a parameter tree.

A foreign layout is a flat dictionary from names to arrays; our tree is a nested dictionary in which
the layers of a group are stacked on a leading axis. The same table is read in both directions, one
array or one layer at a time. A missing, unexpected or misshapen tensor is an error that names it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from einops import rearrange

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.parameters import flatten
from imagewam_jax.weights.io.tensors import (
    DTYPES,
    TensorSource,
    TensorSpec,
    contiguous,
    dtype_name,
    read_checked,
)
from imagewam_jax.weights.io.zeros import refuse_zeros

# How many tensors are read and transposed ahead: more would cost memory and gain little speed.
AHEAD = 2
# The arrays, by the ends of their paths, that a trained model can have zero as a whole: none of the
# layouts has a matrix that starts at zero, besides LoRA's B, which is merged before.
MAY_BE_ZERO = ("bias", "mean")
LAYER = "{i}"  # stands for the layer index in the names of tensors that are stacked
TRANSPOSE = "o i -> i o"  # of a linear weight, officially `[out, in]`


@dataclass(frozen=True)
class TensorSlice:
    """A slice of a foreign tensor that is one array, or one layer of one, in our tree.

    `path` is the array's dotted path; `pattern` is an einops pattern from the foreign axes to ours,
    with the axis `sizes` that it needs; `width` is the slice's extent along the axis that the
    foreign tensor is split on (None: all of it). `exchange` is an axis of ours whose two halves
    change places.
    """

    path: str
    pattern: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    width: int | None = None
    exchange: int | None = None

    def ours(self, foreign: np.ndarray) -> np.ndarray:
        """The slice in our axes."""
        return self._exchanged(rearrange(foreign, self.pattern, **self.sizes))

    def foreign(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of `ours`."""
        left, right = self.pattern.split(" -> ")
        return rearrange(self._exchanged(ours), f"{right} -> {left}", **self.sizes)

    def _exchanged(self, array: np.ndarray) -> np.ndarray:
        if self.exchange is None:
            return array
        return np.roll(array, array.shape[self.exchange] // 2, self.exchange)


@dataclass(frozen=True)
class Rule:
    """One foreign tensor, or one per layer if the name has `{i}`.

    Its slices follow each other along `axis`.
    """

    name: str
    slices: tuple[TensorSlice, ...]
    axis: int = 0
    layers: int | None = None

    def names(self) -> list[str]:
        if self.layers is None:
            return [self.name]
        return [self.name.replace(LAYER, str(i)) for i in range(self.layers)]

    def split(self, tensor: np.ndarray) -> list[np.ndarray]:
        """The tensor cut into its slices, in foreign axes."""
        widths = [s.width for s in self.slices]
        if None in widths:
            return [tensor]
        return np.split(tensor, np.cumsum(widths)[:-1], axis=self.axis)


def rule(name: str, path: str, pattern: str, *, layers: int | None = None, **sizes: int) -> Rule:
    """A rule for the common case, in which one foreign tensor is one array of ours."""
    return Rule(name, (TensorSlice(path, pattern, sizes),), layers=layers)


def under(rules: Sequence[Rule], *, prefix: str = "", path: str = "") -> list[Rule]:
    """The same rules with `prefix` before the foreign names, and below `path` in our tree."""

    def below(s: TensorSlice) -> TensorSlice:
        return replace(s, path=f"{path}.{s.path}") if path else s

    return [replace(r, name=prefix + r.name, slices=tuple(map(below, r.slices))) for r in rules]


class Piece(NamedTuple):
    """One layer of a stacked array of a tree, or a whole array (`layer` is None)."""

    path: str  # dotted
    layer: int | None
    array: np.ndarray


def foreign_shapes(rules: Sequence[Rule], like: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every foreign tensor, from the shapes of our tree."""
    flat, shapes = flatten(like), {}
    for r in rules:
        parts = []
        for s in r.slices:
            if s.path not in flat:
                raise ConversionError(f"the model has no {s.path}, which its mapping speaks of")
            shape = tuple(flat[s.path].shape)[0 if r.layers is None else 1 :]
            parts.append(s.foreign(np.broadcast_to(np.int8(0), shape)).shape)
        shape = list(parts[0])
        if len(parts) > 1:
            shape[r.axis] = sum(part[r.axis] for part in parts)
        shapes |= dict.fromkeys(r.names(), tuple(shape))
    return shapes


def check(
    rules: Sequence[Rule], specs: Mapping[str, TensorSpec], like: Mapping[str, Any], what: str
) -> None:
    """ConversionError unless `specs` are exactly the tensors that the rules make of `like`.

    Looks at names, shapes and dtypes only, so that it costs nothing before a long conversion.
    `what` names the source.
    """
    paths = {s.path for r in rules for s in r.slices}
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


def tree_dtypes(rules: Sequence[Rule], specs: Mapping[str, TensorSpec]) -> dict[str, np.dtype]:
    """The dtype of each array of our tree: that of its layers, or float32, which has all numbers of
    the other `DTYPES`, if they differ."""
    return {
        path: found.pop() if len(found) == 1 else np.dtype(np.float32)
        for path, found in _layer_dtypes(rules, specs).items()
    }


def mixed_arrays(rules: Sequence[Rule], specs: Mapping[str, TensorSpec]) -> list[str]:
    """The paths of the arrays whose layers are of several dtypes."""
    return [path for path, found in _layer_dtypes(rules, specs).items() if len(found) > 1]


def _layer_dtypes(
    rules: Sequence[Rule], specs: Mapping[str, TensorSpec]
) -> dict[str, set[np.dtype]]:
    dtypes: dict[str, set[np.dtype]] = {}
    for r in rules:
        for s in r.slices:
            dtypes.setdefault(s.path, set()).update(np.dtype(specs[n].dtype) for n in r.names())
    return dtypes


def pieces(rules: Sequence[Rule], source: TensorSource) -> Iterator[Piece]:
    """Yield our arrays layer by layer; each foreign tensor is read once and then dropped.

    Layers are in the dtypes of the source, which `tree_dtypes` joins. Threads make the next pieces
    while one is in use. The source must have passed `check`. Errors are those of `read_checked`; a
    ConversionError also if a piece is zero that no trained model has zero.
    """
    names = [
        (r, None if r.layers is None else i, n) for r in rules for i, n in enumerate(r.names())
    ]

    def make(number: int) -> list[Piece]:
        r, layer, name = names[number]
        slices = r.split(read_checked(source, name))
        made = [
            Piece(s.path, layer, contiguous(s.ours(foreign)))
            for s, foreign in zip(r.slices, slices, strict=True)
        ]
        for piece in made:
            if piece.path.rpartition(".")[2] not in MAY_BE_ZERO:
                refuse_zeros(piece.array, name, source.specs[name].file)
        return made

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
    return frozenset(s.path for r in rules if r.layers is not None for s in r.slices)


class TreeReader:
    """Reads arrays of our tree, or single layers of them, from a foreign source."""

    def __init__(self, rules: Sequence[Rule], source: TensorSource):
        self._source = source
        self._rules = {s.path: (r, i) for r in rules for i, s in enumerate(r.slices)}
        self._dtypes = tree_dtypes(rules, source.specs)

    def __call__(self, path: str, layer: int | None) -> np.ndarray:
        r, index = self._rules[path]
        name = r.name if layer is None else r.name.replace(LAYER, str(layer))
        array = r.slices[index].ours(r.split(read_checked(self._source, name))[index])
        return array.astype(self._dtypes[path], copy=False)


class ForeignView:
    """Presents a tree of ours as a source of foreign tensors, each made when it is read.

    `read` returns an array of the tree by its dotted path, or one layer of it; it must be thread
    safe if this source is read from threads. `like` has the shapes and dtypes. ConversionError: a
    foreign tensor would be made of arrays of several dtypes.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        like: Mapping[str, Any],
        read: Callable[[str, int | None], np.ndarray],
        file: str,
    ):
        self._read = read
        self._rules = {
            name: (r, None if r.layers is None else i)
            for r in rules
            for i, name in enumerate(r.names())
        }
        dtypes = {path: np.dtype(leaf.dtype) for path, leaf in flatten(like).items()}
        self.specs: dict[str, TensorSpec] = {}
        for name, shape in foreign_shapes(rules, like).items():
            r, _ = self._rules[name]
            dtype, *others = {dtypes[s.path] for s in r.slices}
            if others:
                found = dtype_name({dtype, *others})
                raise ConversionError(f"{file}: {r.name} would be of {found}")
            self.specs[name] = TensorSpec(shape, dtype, file)

    def read(self, name: str) -> np.ndarray:
        r, layer = self._rules[name]
        slices = [s.foreign(self._read(s.path, layer)) for s in r.slices]
        return contiguous(slices[0] if len(slices) == 1 else np.concatenate(slices, r.axis))


def to_foreign(rules: Sequence[Rule], tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """All foreign tensors of a tree that is in memory."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}
    view = ForeignView(rules, tree, lambda p, i: flat[p] if i is None else flat[p][i], "memory")
    return {name: view.read(name) for name in view.specs}


def _some(names: list[str], limit: int = 8) -> str:
    return f"({', '.join(names[:limit])}{', ...' if len(names) > limit else ''})" if names else ""
