"""What foreign weights are, and what becomes of them: recognised and checked, nothing read yet."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.parameters import flatten, unflatten
from imagewam_jax.text.encoders import QWEN3_OF_KLEIN
from imagewam_jax.weights.components import PARTS
from imagewam_jax.weights.io.files import open_weights
from imagewam_jax.weights.io.tensors import TensorSource, without
from imagewam_jax.weights.layouts.foreign_view import ForeignView, TreeReader
from imagewam_jax.weights.layouts.mapping import Rule, check, tree_dtypes, under
from imagewam_jax.weights.layouts.metadata import Known
from imagewam_jax.weights.layouts.recognition import Layout, recognise
from imagewam_jax.weights.sidecar import Beside, read_beside


@dataclasses.dataclass(frozen=True)
class Found:
    """A source that was recognised; `tensors` are under the names of its layout, `values` what
    else is in the file."""

    path: Path
    layout: Layout
    tensors: TensorSource
    values: Mapping[str, Any]
    facts: Known
    beside: Beside


@dataclasses.dataclass(frozen=True)
class Conversion:
    """One part, checked: its sizes, and where its arrays come from.

    `tree` is that of the checkpoint, at whose root `rules` and `abstract` are.
    """

    part: str
    config: Any
    tree: str
    rules: list[Rule]
    source: TensorSource
    abstract: Mapping[str, Any]  # in the dtypes of the source


def find_source(path: Path, given: Mapping[str, Any]) -> Found:
    """Opens and recognises one source. ConversionError: it is nothing that is known."""
    opened = open_weights(path)
    layout, tensors = recognise(opened, str(path))
    values = getattr(opened, "values", {})
    beside = read_beside(path)
    return Found(path, layout, tensors, values, Known({**values, **beside.facts}, given), beside)


def plan(found: Sequence[Found], recipe: str | None) -> list[Conversion]:
    """What is to be written, each part checked against its model; `recipe` is one for an action
    expert's first weights. ConversionError: something is missing, twice there, or does not fit."""
    by_part: dict[str, Found] = {}
    for f in found:
        if f.layout.part in by_part:
            raise ConversionError(
                f"{by_part[f.layout.part].path} and {f.path} are both a {f.layout.part}"
            )
        by_part[f.layout.part] = f
    backbone, base = by_part.get("backbone"), None
    if "policy" in by_part and backbone is not None:
        _, base = _in_original_layout(backbone)
        del by_part["backbone"]  # what the policy was trained from, not a part of its own
    conversions = [_conversion(f, base) for f in by_part.values()]
    if recipe is not None:
        if backbone is None or base is not None:
            raise ConversionError(
                "--expert-init makes an action expert from the weights of a transformer alone; "
                f"given are {sorted(f.layout.part for f in found)}"
            )
        conversions.append(_initial_expert(backbone, recipe))
    _check_text_width(conversions)
    return conversions


def _conversion(f: Found, base: TensorSource | None) -> Conversion:
    layout, part = f.layout, PARTS[f.layout.part]
    try:
        source = layout.source(without(f.tensors, layout.carried), f.facts, base)
        sizes = layout.config(source.specs, f.facts)
    except ConversionError as error:
        if str(f.path) in str(error):
            raise
        raise ConversionError(f"{f.path}: {error}") from error
    rules, abstract = layout.rules(sizes), part.abstract(sizes)
    check(rules, source.specs, abstract, f"{f.path} ({layout.name})")
    conversion = _rooted(f.layout.part, sizes, rules, source, abstract)
    _check_config(conversion, f.path)
    return conversion


def _check_config(conversion: Conversion, path: Path) -> None:
    """ConversionError unless the part can be rebuilt from what the checkpoint will say of it."""
    part = PARTS[conversion.part]
    try:
        found = part.config(part.section(conversion.config))
    except ValueError as error:
        raise ConversionError(f"{path}: {error}") from error
    if found != conversion.config:
        raise ConversionError(f"{path}: {conversion.config} cannot be kept in a config: {found}")


def _initial_expert(backbone: Found, recipe: str) -> Conversion:
    layout = backbone.layout.original or backbone.layout
    if layout.initial_expert is None:
        raise ConversionError(f"no action expert can be made from a {backbone.layout.name}")
    sizes, source = _in_original_layout(backbone)
    initial = layout.initial_expert(source, sizes, backbone.facts, recipe)
    return _rooted("expert", initial.config, initial.rules, initial.source, initial.abstract)


def _in_original_layout(f: Found) -> tuple[Any, TensorSource]:
    """The sizes of a model, and its tensors under the names that the official code uses."""
    checked = _conversion(f, None)
    sizes, rules = checked.config, f.layout.rules(checked.config)
    if f.layout.original is None:
        return sizes, checked.source
    like = PARTS[f.layout.part].abstract(sizes)
    like = _with_dtypes(like, tree_dtypes(rules, checked.source.specs))
    reader = TreeReader(rules, checked.source)
    return sizes, ForeignView(f.layout.original.rules(sizes), like, reader, str(f.path))


def _rooted(
    part: str, config: Any, rules: list[Rule], source: TensorSource, abstract: Mapping[str, Any]
) -> Conversion:
    """A checked part, at the root of its tree."""
    tree, path = PARTS[part].tree, PARTS[part].path
    abstract = _with_dtypes(abstract, tree_dtypes(rules, source.specs))
    for name in reversed(path.split(".") if path else []):
        abstract = {name: abstract}
    return Conversion(part, config, tree, under(rules, path=path), source, abstract)


def _with_dtypes(tree: Mapping[str, Any], dtypes: Mapping[str, np.dtype]) -> dict[str, Any]:
    flat = {p: jax.ShapeDtypeStruct(x.shape, dtypes[p]) for p, x in flatten(tree).items()}
    return unflatten(flat)


def _check_text_width(conversions: Sequence[Conversion]) -> None:
    """ConversionError: the text encoder is not that of the transformer."""
    configs = {c.part: c.config for c in conversions}
    policy, encoder = configs.get("policy"), configs.get("text_encoder")
    backbone = configs.get("backbone") if policy is None else policy.backbone
    if backbone and encoder and backbone.text_dim != encoder.feature_dim:
        raise ConversionError(
            f"the text encoder makes features of {encoder.feature_dim} channels, the transformer "
            f"takes {backbone.text_dim}: {QWEN3_OF_KLEIN}"
        )
