"""First weights of an action expert, made from a transformer's (docs/spec/imagewam_flux2.md, 4.3).

Transformer and expert are both in the official layout. The official recipe resizes a fused matrix
as a whole, which mixes its bands: a row of the expert's keys is made of rows of queries, keys and
values alike. The aligned recipe resizes each band by itself.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones import make_backbone
from imagewam_jax.models.backbones.base import BackboneConfig
from imagewam_jax.models.parameters import flatten, module_tree, unflatten
from imagewam_jax.weights.io.tensors import TensorSource, TensorSpec, read_checked
from imagewam_jax.weights.layouts.families import family_of
from imagewam_jax.weights.layouts.mapping import Rule, foreign_shapes
from imagewam_jax.weights.layouts.metadata import Metadata, find_or

FRESH = ("action_encoder.", "head.")  # these keep their random initialization
RECIPES = ("official", "aligned")


class Initial(NamedTuple):
    """The arrays of an expert that get first weights, and the source that makes them."""

    config: ActionExpertConfig
    rules: list[Rule]
    source: TensorSource
    abstract: Mapping[str, Any]


def initial_expert(
    transformer: TensorSource, backbone: BackboneConfig, metadata: Metadata, recipe: str
) -> Initial:
    """First weights of an expert, except for its action embedding and its head.

    `recipe` is one of `RECIPES`; sizes that `metadata` lacks are the official ones. A matrix whose
    last axis changes from N to n is multiplied by sqrt(N / n), which keeps the size of its outputs,
    if `expert_scale` in `metadata` says so, or else if the official script does. ConversionError:
    the recipe is unknown, or the transformer lacks a tensor.
    """
    if recipe not in RECIPES:
        raise ConversionError(f"unknown recipe {recipe!r}; choose from {RECIPES}")
    family = family_of(backbone)
    expert = family.initial_config(metadata, backbone)

    def make() -> nnx.Module:
        rngs = nnx.Rngs(0)
        return make_backbone(backbone, rngs=rngs).make_expert(expert, rngs=rngs)

    like = module_tree(jax.eval_shape(make))
    every = family.expert_rules(expert, backbone)
    shapes = foreign_shapes(every, like)
    aligned = (family.transformer_rules(backbone), every) if recipe == "aligned" else None
    rules = [r for r in every if not r.name.startswith(FRESH)]
    paths = {s.path for r in rules for s in r.slices}
    abstract = unflatten({path: leaf for path, leaf in flatten(like).items() if path in paths})
    source = InitialExpert(
        transformer,
        shapes,
        aligned=aligned,
        scale=find_or(metadata, family.scaled, "expert_scale"),
        source_name=family.initial_name,
    )
    return Initial(expert, rules, source, abstract)


class InitialExpert:
    """A source of float32 expert tensors, each made of a tensor of the transformer.

    Equal shapes are copied, others interpolated axis by axis with aligned corners.
    """

    def __init__(
        self,
        transformer: TensorSource,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        aligned: tuple[Sequence[Rule], Sequence[Rule]] | None = None,
        scale: bool = True,
        source_name: Callable[[str], str] = lambda name: name,
    ):
        """`shapes` are the shapes of the expert's tensors. `aligned` has the rules of transformer
        and expert, which say where bands are; None means the official recipe. `source_name` is the
        transformer's tensor that a tensor of the expert is made of. ConversionError: the
        transformer lacks one."""
        self._transformer, self._scale, self._source_name = transformer, scale, source_name
        self._rules = [{n: r for r in rules for n in r.names()} for rules in aligned or ()]
        self.specs: dict[str, TensorSpec] = {}
        for name, shape in shapes.items():
            if name.startswith(FRESH):
                continue
            source = source_name(name)
            if source not in transformer.specs:
                raise ConversionError(
                    f"the transformer's weights have no {source}, which the action expert starts "
                    "from"
                )
            file = f"{transformer.specs[source].file} (resized)"
            self.specs[name] = TensorSpec(shape, np.dtype(np.float32), file)

    def read(self, name: str) -> np.ndarray:
        source = read_checked(self._transformer, self._source_name(name))
        shape = self.specs[name].shape
        resized = source.astype(np.float32)
        for axis, size in enumerate(shape):
            old, new = self._bands(name, axis, source.shape[axis], size)
            bands = np.split(resized, np.cumsum(old)[:-1], axis)
            resized = np.concatenate(
                [_resize(band, axis, width) for band, width in zip(bands, new, strict=True)], axis
            )
        resized = resized.astype(source.dtype).astype(np.float32)
        if self._scale and source.ndim >= 2 and source.shape[-1] != shape[-1]:
            resized *= np.float32(math.sqrt(source.shape[-1] / shape[-1]))
        return resized

    def _bands(self, name: str, axis: int, old: int, new: int) -> list[list[int]]:
        """The widths of the bands that are resized separately along an axis, before and after."""
        if not self._rules:
            return [[old], [new]]
        return [
            band_widths(rules[of], axis, size)
            for rules, of, size in zip(
                self._rules, (self._source_name(name), name), (old, new), strict=True
            )
        ]


def band_widths(r: Rule, axis: int, size: int) -> list[int]:
    """The widths of the bands in an axis of `size` of a rule's tensor.

    Slices that follow each other are bands, and so are the factors of a slice's own axis, such as
    shift, scale and gate, unless the pattern fixes all of them.
    """
    if axis != r.axis:
        return [size]
    widths = []
    for s in r.slices:
        left = s.pattern.split(" -> ")[0]
        group = re.findall(r"\([^)]*\)|\S+", left)[axis].strip("()").split()
        given = [s.sizes[name] for name in group if name in s.sizes]
        count = math.prod(given) if len(given) < len(group) else 1
        width = size if s.width is None else s.width
        widths += [width // count] * count
    return widths


def _resize(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Interpolate linearly along an axis; the first and last entries stay as they are."""
    length = x.shape[axis]
    if length == size:
        return x
    position = np.arange(size, dtype=np.float64) * ((length - 1) / max(size - 1, 1))
    low = np.minimum(position.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    fraction = (position - low).astype(np.float32)
    fraction = fraction.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return x.take(low, axis) * (1 - fraction) + x.take(high, axis) * fraction
