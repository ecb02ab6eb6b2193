"""Recognize foreign weights and plan their conversion: all is checked, and no tensor read yet."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import KLEIN_4B, KLEIN_9B
from imagewam_jax.models.backbones.omnigen2 import OMNIGEN2
from imagewam_jax.models.backbones.ovis_u1 import OVIS_U1
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import flatten, unflatten
from imagewam_jax.models.text_encoders.qwen3 import QWEN3_4B, QWEN3_8B
from imagewam_jax.text.encoders import QWEN3_OF_KLEIN
from imagewam_jax.weights.components import COMPONENTS
from imagewam_jax.weights.io.files import open_weights
from imagewam_jax.weights.io.tensors import TensorSource, dtype_name, without
from imagewam_jax.weights.layouts.action_init import initial_expert
from imagewam_jax.weights.layouts.mapping import (
    ForeignView,
    Rule,
    TreeReader,
    check,
    mixed_arrays,
    tree_dtypes,
    under,
)
from imagewam_jax.weights.layouts.metadata import SourceMetadata
from imagewam_jax.weights.layouts.registry import LAYOUTS, Layout
from imagewam_jax.weights.layouts.sets import find_weights, unwrapped
from imagewam_jax.weights.sidecar import Sidecar, read_sidecar

# Public models, recognized by the sizes that shapes give.
PUBLIC = {
    "klein 4B": KLEIN_4B,
    "klein 9B": KLEIN_9B,
    "OmniGen2": OMNIGEN2,
    "Ovis-U1": OVIS_U1,
    "Qwen3-4B": QWEN3_4B,
    "Qwen3-8B": QWEN3_8B,
}


@dataclasses.dataclass(frozen=True)
class RecognizedSource:
    """A source whose layout is known.

    tensors: those of the file under the layout's names, without those that the user left out.
    values: what the file holds besides tensors.
    notes: for the terminal, what was passed over, and how the names were read.
    """

    path: Path
    layout: Layout
    tensors: TensorSource
    values: Mapping[str, Any]
    metadata: SourceMetadata
    sidecar: Sidecar
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Conversion:
    """A checked component: its config, and the rules and the source that make its arrays.

    `rules` and `abstract` start at the root of `tree`, a tree of the checkpoint.
    """

    component: str
    config: Any
    tree: str
    rules: list[Rule]
    source: TensorSource
    abstract: Mapping[str, Any]  # in the dtypes of the source


def recognize_source(
    path: Path, overrides: Mapping[str, Any], statistics: Path | None = None
) -> RecognizedSource:
    """Open a source and recognize its layout; `statistics` is a policy's file of statistics, which
    is otherwise looked for beside it. ConversionError: the layout is not known."""
    opened = open_weights(path)
    found = find_weights(opened, LAYOUTS, str(path), overrides.get("weights"))
    policy = found.layout.component == "policy"
    sidecar = read_sidecar(path, with_statistics=policy, statistics=statistics)
    # Those at the top of the file win over those of the same name beside the weights.
    values = {unwrapped(k).removeprefix(found.prefix): v for k, v in opened.values.items()}
    values |= opened.values
    metadata = SourceMetadata({**values, **sidecar.metadata}, overrides)
    if found.fits_choice:
        metadata.used.add("weights")
    notes = opened.notes + found.notes
    if sidecar.statistics_file:
        notes += (f"statistics: {sidecar.statistics_file.name}",)
    return RecognizedSource(path, found.layout, found.tensors, values, metadata, sidecar, notes)


def plan(found: Sequence[RecognizedSource], recipe: str | None) -> list[Conversion]:
    """The components to write, each checked against its model; `recipe` makes an action expert's
    first weights. ConversionError: something is missing, is there twice, or does not fit."""
    by_component: dict[str, RecognizedSource] = {}
    for f in found:
        name = f.layout.component
        if name in by_component:
            raise ConversionError(f"{by_component[name].path} and {f.path} are both a {name}")
        by_component[name] = f
    backbone, base = by_component.get("backbone"), None
    if "policy" in by_component and backbone is not None:
        _, base = _in_original_layout(backbone)
        del by_component["backbone"]  # the policy was trained from it, and takes its place
    conversions = [_conversion(f, base) for f in by_component.values()]
    if recipe is not None:
        if backbone is None or base is not None:
            raise ConversionError(
                "--expert-init makes an action expert from the weights of a transformer alone; "
                f"given are {sorted(f.layout.component for f in found)}"
            )
        conversions.append(_initial_expert(backbone, recipe))
    _check_text_width(conversions)
    return conversions


def _conversion(f: RecognizedSource, base: TensorSource | None) -> Conversion:
    layout, component = f.layout, COMPONENTS[f.layout.component]
    try:
        source = layout.source(without(f.tensors, layout.carried), f.metadata, base)
        sizes = layout.config(source.specs, f.metadata)
    except ConversionError as error:
        if str(f.path) in str(error):
            raise
        raise ConversionError(f"{f.path}: {error}") from error
    rules, abstract = layout.rules(sizes), component.abstract(sizes)
    check(rules, source.specs, abstract, f"{f.path} ({layout.name})")
    conversion = _rooted(f.layout.component, sizes, rules, source, abstract)
    _check_config(conversion, f.path)
    return conversion


def _check_config(conversion: Conversion, path: Path) -> None:
    """ConversionError unless the component can be rebuilt from the checkpoint's config section."""
    component = COMPONENTS[conversion.component]
    try:
        found = component.config(component.section(conversion.config))
    except ValueError as error:
        raise ConversionError(f"{path}: {error}") from error
    if found != conversion.config:
        raise ConversionError(f"{path}: {conversion.config} cannot be kept in a config: {found}")


def _initial_expert(backbone: RecognizedSource, recipe: str) -> Conversion:
    sizes, source = _in_original_layout(backbone)
    initial = initial_expert(source, sizes, backbone.metadata, recipe)
    return _rooted("expert", initial.config, initial.rules, initial.source, initial.abstract)


def _in_original_layout(f: RecognizedSource) -> tuple[Any, TensorSource]:
    """The sizes of a model, and its tensors under the names that the official code uses."""
    checked = _conversion(f, None)
    sizes, rules = checked.config, f.layout.rules(checked.config)
    if f.layout.original is None:
        return sizes, checked.source
    like = COMPONENTS[f.layout.component].abstract(sizes)
    like = _with_dtypes(like, tree_dtypes(rules, checked.source.specs))
    reader = TreeReader(rules, checked.source)
    return sizes, ForeignView(f.layout.original.rules(sizes), like, reader, str(f.path))


def _rooted(
    name: str, config: Any, rules: list[Rule], source: TensorSource, abstract: Mapping[str, Any]
) -> Conversion:
    """The conversion of a checked component, whose rules and arrays start at its own root."""
    tree, path = COMPONENTS[name].tree, COMPONENTS[name].path
    abstract = _with_dtypes(abstract, tree_dtypes(rules, source.specs))
    for key in reversed(path.split(".") if path else []):
        abstract = {key: abstract}
    return Conversion(name, config, tree, under(rules, path=path), source, abstract)


def _with_dtypes(tree: Mapping[str, Any], dtypes: Mapping[str, np.dtype]) -> dict[str, Any]:
    flat = {p: jax.ShapeDtypeStruct(x.shape, dtypes[p]) for p, x in flatten(tree).items()}
    return unflatten(flat)


def _check_text_width(conversions: Sequence[Conversion]) -> None:
    """ConversionError: the text encoder does not belong to the transformer."""
    configs = {c.component: c.config for c in conversions}
    policy, encoder = configs.get("policy"), configs.get("text_encoder")
    backbone = configs.get("backbone") if policy is None else policy.backbone
    if backbone and encoder and backbone.text_dim != encoder.feature_dim:
        raise ConversionError(
            f"the text encoder makes features of {encoder.feature_dim} channels, the transformer "
            f"takes {backbone.text_dim}: {QWEN3_OF_KLEIN}"
        )


def describe(found: Sequence[RecognizedSource], conversions: Sequence[Conversion]) -> str:
    """Describe each source, then each component, in lines for the terminal."""
    lines = []
    for f in found:
        state = f.layout.state(f.tensors.specs)
        state = f" ({state})" if state else ""
        lines.append(f"{f.path}: {f.layout.name}, {len(f.tensors.specs)} tensors{state}")
        lines += [f"  {note}" for note in f.notes]
    for c in conversions:
        leaves = flatten(c.abstract).values()
        numbers = sum(int(np.prod(leaf.shape)) for leaf in leaves)
        dtypes = dtype_name({np.dtype(leaf.dtype) for leaf in leaves})
        lines.append(f"  {c.component}: {sizes(c.config)}; {numbers:,} numbers in {dtypes}")
        if mixed := mixed_arrays(c.rules, c.source.specs):
            lines.append(
                f"  {len(mixed)} arrays have layers of several dtypes, such as {mixed[0]}: all of "
                "their layers are read as float32, which changes no number"
            )
    return "\n".join(lines)


def sizes(config: Any) -> str:
    """Describe the sizes of a component in a line, with its public name if it has one."""
    if isinstance(config, ImageWAMConfig):
        proprio = "no proprio" if config.proprio_dim is None else f"proprio {config.proprio_dim}"
        return (
            f"{sizes(config.backbone)}; {sizes(config.expert)}, action dimension "
            f"{config.expert.action_dim}, {proprio}, chunks of {config.horizon}, positions and "
            f"times in {config.coordinate_dtype}"
        )
    name = next((f"{name}, " for name, public in PUBLIC.items() if public == config), "")
    if isinstance(config, ActionExpertConfig):
        return f"expert width {config.dim}"
    fields = ", ".join(f"{k} {v}" for k, v in vars(config).items() if isinstance(v, int))
    return name + fields
