"""Foreign weights to a checkpoint of ours: recognised, checked whole, then streamed."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import imagewam_jax
from imagewam_jax.conversion.errors import ConversionError
from imagewam_jax.conversion.facts import Facts, find
from imagewam_jax.conversion.files import open_weights
from imagewam_jax.conversion.layouts import Layout, recognise
from imagewam_jax.conversion.mapping import (
    ForeignView,
    Piece,
    Rule,
    TreeReader,
    check,
    flatten,
    pieces,
    stacked_paths,
    tree_dtypes,
    under,
    unflatten,
)
from imagewam_jax.conversion.tensors import TensorSource, without
from imagewam_jax.data.statistics import statistics_to_json
from imagewam_jax.exchange.beside import STATISTICS, Beside, checksums, read_beside
from imagewam_jax.exchange.describe import describe
from imagewam_jax.exchange.parts import PARTS
from imagewam_jax.exchange.settings import merged_config
from imagewam_jax.exchange.statistics import global_statistics, normalizers
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.policies.config import DTYPES, choose
from imagewam_jax.policies.streaming import Stream, check_absent, stream_of, write_streams


@dataclasses.dataclass(frozen=True)
class Found:
    """A source that was recognised; `tensors` are under the names of its layout, `values` what
    else is in the file."""

    path: Path
    layout: Layout
    tensors: TensorSource
    values: Mapping[str, Any]
    facts: Facts
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


def convert(
    sources: Sequence[Path],
    to: Path,
    *,
    given: Facts | None = None,
    dtype: str | None = None,
    expert: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Converts weights to one checkpoint in the folder `to`, and prints what they are.

    given: facts that no file beside the weights has (`beside.SETTABLE`).
    dtype: "float32" or "bfloat16"; None keeps each tensor's own.
    expert: "official" or "aligned": also first weights of an action expert, from a transformer.
    config: a whole config, for what weights do not tell of a policy: data, text, evaluation.

    ConversionError, CheckpointError: what is wrong; nothing that could be taken for a checkpoint
    is left in `to`.
    """
    if dtype is not None:
        choose(DTYPES, dtype, "--dtype")
    found = [find_source(path, given or {}) for path in sources]
    conversions = plan(found, expert)
    print(describe(found, conversions))
    of_part = {f.layout.part: f for f in found}
    official = of_part.get("policy")
    sections = [PARTS[c.part].section(c.config) for c in conversions]
    about: dict[str, Any] = {
        "config": merged_config(sections, official.facts if official else {}, config)
    }
    streams = {tree: _stream(conversions, tree, dtype) for tree in {c.tree for c in conversions}}
    if official:
        policy = next(c.config for c in conversions if c.part == "policy")
        streams |= _statistics(about, official, policy)
    json_items = {}
    if "text_encoder" in of_part:
        json_items["tokenizer"] = of_part["text_encoder"].beside.tokenizer
    step = (official.values.get("step") if official else None) or 0
    check_absent(to, step)
    about["provenance"] = {
        "imagewam_jax": imagewam_jax.__version__,
        "sources": [
            {**file, "part": f.layout.part, "recognised": f.layout.name}
            for f in found
            for file in checksums(f.path)
        ],
        "expert": expert,
        "given": dict(given or {}),
        "dtype": dtype or "as in the sources",
        "carried": {name: value for f in found for name, value in _carried(f).items()},
    }
    write_streams(to, step, streams, about, **json_items)
    print(f"{to}: step {step}, {', '.join(sorted(streams))}")


def find_source(path: Path, given: Facts) -> Found:
    """Opens and recognises one source. ConversionError: it is nothing that is known."""
    opened = open_weights(path)
    layout, tensors = recognise(opened, str(path))
    values = getattr(opened, "values", {})
    beside = read_beside(path)
    return Found(path, layout, tensors, values, {**beside.facts, **given}, beside)


def plan(found: Sequence[Found], expert: str | None) -> list[Conversion]:
    """What is to be written, each part checked against its model. ConversionError: something is
    missing, twice there, or does not fit."""
    by_part: dict[str, Found] = {}
    for f in found:
        if f.layout.part in by_part:
            raise ConversionError(
                f"{by_part[f.layout.part].path} and {f.path} are both a {f.layout.part}"
            )
        by_part[f.layout.part] = f
    backbone, base = by_part.get("backbone"), None
    if "policy" in by_part and backbone is not None:
        base = _in_original_layout(backbone)
        del by_part["backbone"]  # what the policy was trained from, not a part of its own
    conversions = [_conversion(f, base) for f in by_part.values()]
    if expert is not None:
        if backbone is None or base is not None:
            raise ConversionError(
                "--expert-init makes an action expert from the weights of a transformer alone; "
                f"given are {sorted(f.layout.part for f in found)}"
            )
        conversions.append(_initial_expert(backbone, expert))
    _check_text_width(conversions)
    return conversions


def _conversion(f: Found, base: TensorSource | None) -> Conversion:
    layout, part = f.layout, PARTS[f.layout.part]
    try:
        source = layout.source(without(f.tensors, layout.carried), f.facts, base)
        sizes = layout.config(source.specs, f.facts)
    except ConversionError as error:
        named = str(f.path) in str(error)
        raise error if named else ConversionError(f"{f.path}: {error}") from error
    rules, abstract = layout.rules(sizes), part.abstract(sizes)
    check(rules, source.specs, abstract, f"{f.path} ({layout.name})")
    return _rooted(f.layout.part, sizes, rules, source, abstract)


def _initial_expert(backbone: Found, recipe: str) -> Conversion:
    layout = backbone.layout.original or backbone.layout
    if layout.initial_expert is None:
        raise ConversionError(f"no action expert can be made from a {backbone.layout.name}")
    source = _in_original_layout(backbone)
    sizes = layout.config(source.specs, backbone.facts)
    initial = layout.initial_expert(source, sizes, backbone.facts, recipe)
    return _rooted("expert", initial.config, initial.rules, initial.source, initial.abstract)


def _in_original_layout(f: Found) -> TensorSource:
    """The tensors under the names that the official code uses."""
    original = f.layout.original
    if original is None:
        return f.tensors
    sizes = f.layout.config(f.tensors.specs, f.facts)
    rules, like = f.layout.rules(sizes), PARTS[f.layout.part].abstract(sizes)
    check(rules, f.tensors.specs, like, f"{f.path} ({f.layout.name})")
    like = _with_dtypes(like, tree_dtypes(rules, f.tensors.specs))
    reader = TreeReader(rules, f.tensors)
    return ForeignView(original.rules(sizes), like, reader, str(f.path))


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
            f"takes {backbone.text_dim}: Qwen3-4B (7680) belongs to klein 4B, Qwen3-8B (12288) "
            "to klein 9B"
        )


def _stream(conversions: Sequence[Conversion], tree: str, dtype: str | None) -> Stream:
    """One tree of the checkpoint, of all parts that are in it."""
    parts = [c for c in conversions if c.tree == tree]
    flat = {path: leaf for c in parts for path, leaf in flatten(c.abstract).items()}
    if dtype is not None:
        flat = {p: jax.ShapeDtypeStruct(x.shape, DTYPES[dtype]) for p, x in flat.items()}
    stacked = frozenset(path for c in parts for path in stacked_paths(c.rules))

    def cast() -> Iterator[Piece]:
        for c in parts:
            for piece in pieces(c.rules, c.source):
                target = flat[piece.path].dtype
                yield piece._replace(array=piece.array.astype(target, copy=False))

    return Stream(unflatten(flat), stacked, cast)


def _carried(f: Found) -> dict[str, int]:
    """Values of tensors that only the layout itself has."""
    there = [name for name in f.layout.carried if name in f.tensors.specs]
    return {name: int(f.tensors.read(name)) for name in there}


def _statistics(
    about: dict[str, Any],
    f: Found,
    policy: ImageWAMConfig,
) -> dict[str, Stream]:
    """Statistics of an official checkpoint into `about`; the normalisers, if a mode is known."""
    about["official"] = {"config": f.beside.facts, "statistics": f.beside.statistics}
    if f.beside.statistics is None:
        return {}
    dims = {"action": policy.expert.action_dim, "state": policy.proprio_dim}
    statistics = global_statistics(f.beside.statistics, find(f.facts, "embodiment"), dims)
    about["statistics"] = {
        "source": {"file": STATISTICS, "official": True},
        **statistics_to_json(statistics),
    }
    mode = about["config"]["data"]["normalization"]
    if not mode:
        print(
            "the mode of normalisation is not known: give --set normalization=min/max (official "
            "LIBERO), z-score (official RoboTwin) or another; without, the policy cannot act in "
            "real units"
        )
        return {}
    tree = {name: dataclasses.asdict(n) for name, n in normalizers(statistics, mode).items()}
    return {"normalizers": stream_of(tree)}
