"""Foreign weights to a checkpoint of ours: recognised, checked whole, then streamed."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import imagewam_jax
from imagewam_jax.config.schema import DTYPES, choose
from imagewam_jax.errors import ConversionError
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import flatten, unflatten
from imagewam_jax.preprocess.normalization import stack_normalizers
from imagewam_jax.preprocess.statistics import statistics_to_json
from imagewam_jax.weights.checkpoint_writer import Stream, check_absent, stream_of, write_streams
from imagewam_jax.weights.components import PARTS
from imagewam_jax.weights.describe import describe
from imagewam_jax.weights.layouts.mapping import Piece, pieces, stacked_paths
from imagewam_jax.weights.layouts.metadata import find
from imagewam_jax.weights.plan import Conversion, Found, find_source, plan
from imagewam_jax.weights.settings import merged_config
from imagewam_jax.weights.sidecar import STATISTICS, checksums
from imagewam_jax.weights.statistics import global_statistics, normalizers


def convert(
    sources: Sequence[Path],
    to: Path,
    *,
    given: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    expert: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Converts weights to one checkpoint in the folder `to`, and prints what they are.

    given: facts that no file beside the weights has (`settable.SETTABLE`).
    dtype: "float32" or "bfloat16"; None keeps each tensor's own.
    expert: "official" or "aligned": also first weights of an action expert, from a transformer.
    config: a whole config, for what weights do not tell of a policy: data, text, evaluation.

    ConversionError, CheckpointError: what is wrong; nothing that could be taken for a checkpoint
    is left in `to`.
    """
    if dtype is not None:
        choose(DTYPES, dtype, "--dtype")
    given = dict(given or {})
    found = [find_source(path, given) for path in sources]
    conversions = plan(found, expert)
    print(describe(found, conversions))
    of_part = {f.layout.part: f for f in found}
    official = of_part.get("policy")
    sections = [PARTS[c.part].section(c.config) for c in conversions]
    metadata: dict[str, Any] = {
        "config": merged_config(sections, official.facts if official else {}, config)
    }
    streams = {tree: _stream(conversions, tree, dtype) for tree in {c.tree for c in conversions}}
    if official:
        policy = next(c.config for c in conversions if c.part == "policy")
        streams |= _statistics(metadata, official, policy)
        if config is None:
            print(NO_CONFIG)
    if unused := sorted(set(given).difference(*(f.facts.used for f in found))):
        raise ConversionError(f"--set {unused[0]}=...: nothing in these weights needs it")
    json_items = {}
    if "text_encoder" in of_part:
        json_items["tokenizer"] = of_part["text_encoder"].beside.tokenizer
    step = _step(official)
    check_absent(to, step)
    metadata["provenance"] = {
        "imagewam_jax": imagewam_jax.__version__,
        "sources": [
            {**file, "part": f.layout.part, "recognised": f.layout.name}
            for f in found
            for file in checksums(f.path)
        ],
        "expert": expert,
        "given": given,
        "dtype": dtype or "as in the sources",
        "carried": {name: value for f in found for name, value in _carried(f).items()},
    }
    write_streams(to, step, streams, metadata, **json_items)
    print(f"{to}: step {step}, {', '.join(sorted(streams))}")


OFFICIAL = "official"  # the name of the dataset of a checkpoint that does not say it
NO_CONFIG = (
    "without --config (such as configs/libero.py:4b) the policy is one for a single camera and no "
    "known dataset: what cameras it sees, and how, is not in weights"
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


def _step(official: Found | None) -> int:
    """The training step that an official checkpoint was saved at, 0 of what has none."""
    step = None if official is None else official.values.get("step")
    if step is None:
        return 0
    if type(step) is not int or step < 0:  # it becomes the name of a folder
        raise ConversionError(f"{official.path}: step is {step!r}, expected a count")
    return step


def _carried(f: Found) -> dict[str, int]:
    """Values of tensors that only the layout itself has."""
    carried = {}
    for name in f.layout.carried:
        if name in f.tensors.specs:
            value = f.tensors.read(name)
            if value.size != 1:
                raise ConversionError(f"{f.path}: {name} has shape {value.shape}, expected ()")
            carried[name] = int(value.item())
    return carried


def _statistics(metadata: dict[str, Any], f: Found, policy: ImageWAMConfig) -> dict[str, Stream]:
    """Statistics of an official checkpoint into `about`; the normalisers, if a mode is known."""
    metadata["official"] = {"config": f.beside.facts, "statistics": f.beside.statistics}
    if f.beside.statistics is None:
        return {}
    embodiment = find(f.facts, "embodiment")
    dims = {"action": policy.expert.action_dim, "state": policy.proprio_dim}
    statistics = global_statistics(f.beside.statistics, embodiment, dims)
    name = metadata["config"]["data"]["dataset"] or embodiment or OFFICIAL
    metadata["datasets"] = [name]
    source = {"file": STATISTICS, "official": True}
    metadata["statistics"] = {name: {"source": source, **statistics_to_json(statistics)}}
    mode = metadata["config"]["data"]["normalization"]
    if not mode:
        print(
            "the mode of normalisation is not known: give --set normalization=min/max (official "
            "LIBERO), z-score (official RoboTwin) or another; without, the policy cannot act in "
            "real units"
        )
        return {}
    widths = {"actions": dims["action"], "state": dims["state"]}
    tree = {
        name: dataclasses.asdict(stack_normalizers([n], widths[name] or len(n.scale)))
        for name, n in normalizers(statistics, mode).items()
    }
    return {"normalizers": stream_of(tree)}
