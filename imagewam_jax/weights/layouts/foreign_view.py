"""One side of a mapping read as the other: arrays of our tree out of foreign tensors, and back.

Both read one array, or one layer, at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.parameters import flatten
from imagewam_jax.weights.io.tensors import (
    TensorSource,
    TensorSpec,
    contiguous,
    dtype_name,
    read_checked,
)
from imagewam_jax.weights.layouts.mapping import LAYER, Rule, foreign_shapes


class TreeReader:
    """Reads arrays of our tree, or single layers of them, out of a foreign source."""

    def __init__(self, rules: Sequence[Rule], source: TensorSource):
        self._source = source
        self._rules = {part.path: (r, i) for r in rules for i, part in enumerate(r.parts)}

    def __call__(self, path: str, layer: int | None) -> np.ndarray:
        r, index = self._rules[path]
        name = r.name if layer is None else r.name.replace(LAYER, str(layer))
        part = r.parts[index]
        return part.ours(r.split(read_checked(self._source, name))[index])


class ForeignView:
    """A tree of ours as a source in a foreign layout.

    `read` returns an array of the tree by its dotted path, or one layer of it, and is called from
    several threads where this source is; `like` has shapes and dtypes. ConversionError: one foreign
    tensor would be made of arrays of several dtypes.
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
            dtype, *others = {dtypes[part.path] for part in r.parts}
            if others:
                found = dtype_name({dtype, *others})
                raise ConversionError(f"{file}: {r.name} would be of {found}")
            self.specs[name] = TensorSpec(shape, dtype, file)

    def read(self, name: str) -> np.ndarray:
        r, layer = self._rules[name]
        parts = [part.foreign(self._read(part.path, layer)) for part in r.parts]
        return contiguous(parts[0] if len(parts) == 1 else np.concatenate(parts, r.axis))


def to_foreign(rules: Sequence[Rule], tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The inverse of `mapping.to_tree`."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}
    view = ForeignView(rules, tree, lambda p, i: flat[p] if i is None else flat[p][i], "memory")
    return {name: view.read(name) for name in view.specs}
