"""Converts foreign weights to a checkpoint: recognize them, check everything, then stream them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

import imagewam_jax
from imagewam_jax.checkpoints.assets import normalizer_tree
from imagewam_jax.checkpoints.store import CHECKPOINTS_FOLDER
from imagewam_jax.config.schema import DTYPES, choose
from imagewam_jax.errors import ConversionError
from imagewam_jax.files import only_writer
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import flatten, unflatten
from imagewam_jax.preprocess.normalization import make_normalizer, stack_normalizers
from imagewam_jax.preprocess.statistics import statistics_to_json
from imagewam_jax.storage.folders import lock_of
from imagewam_jax.storage.objects import AnyPath
from imagewam_jax.weights.checkpoint_writer import Stream, check_absent, stream_of, write_streams
from imagewam_jax.weights.components import COMPONENTS
from imagewam_jax.weights.converted_config import merged_config
from imagewam_jax.weights.io.files import file_checksums
from imagewam_jax.weights.io.zeros import refuse_zero_end
from imagewam_jax.weights.layouts.imagewam_settings import check_settings
from imagewam_jax.weights.layouts.mapping import Piece, pieces, stacked_paths
from imagewam_jax.weights.layouts.metadata import find
from imagewam_jax.weights.official import global_statistics
from imagewam_jax.weights.plan import (
    Conversion,
    RecognizedSource,
    describe,
    plan,
    recognize_source,
)
from imagewam_jax.weights.sidecar import STATISTICS_FILE


def convert(
    sources: Sequence[Path],
    to: AnyPath,
    *,
    overrides: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    expert: str | None = None,
    config: Mapping[str, Any] | None = None,
    statistics: Path | None = None,
) -> None:
    """Convert weights to one checkpoint in the folder `to`, and print what they are.

    overrides: values that no file beside the weights gives; `overrides.OVERRIDES` has their names.
    dtype: "float32" or "bfloat16"; None keeps the dtype of each tensor.
    expert: "official" or "aligned": also make the first weights of an action expert, from those of
        a transformer.
    config: a whole config, for the sections that weights say nothing about: data, text, evaluation.
    statistics: a policy's `dataset_stats.json`; None looks for it beside the weights.

    ConversionError, CheckpointError: the weights cannot be converted; nothing that could be taken
    for a checkpoint is left in `to`.
    """
    if dtype is not None:
        choose(DTYPES, dtype, "--dtype")
    overrides = dict(overrides or {})
    found = [recognize_source(path, overrides, statistics) for path in sources]
    notes = [note for f in found for note in _check_settings(f)]
    conversions = plan(found, expert)
    print(describe(found, conversions))
    print("".join(f"{note}\n" for note in notes), end="")
    source_of = {f.layout.component: f for f in found}
    official = source_of.get("policy")
    if statistics and not official:
        raise ConversionError(f"--statistics {statistics}: no policy is among the weights")
    sections = [COMPONENTS[c.component].section(c.config) for c in conversions]
    metadata: dict[str, Any] = {
        "config": merged_config(sections, official.metadata if official else {}, config)
    }
    streams = {tree: _stream(conversions, tree, dtype) for tree in {c.tree for c in conversions}}
    if official:
        policy = next(c.config for c in conversions if c.component == "policy")
        streams |= _statistics(metadata, official, policy)
        if config is None:
            print(NO_CONFIG)
    if unused := sorted(set(overrides).difference(*(f.metadata.used for f in found))):
        raise ConversionError(f"--set {unused[0]}=...: nothing in these weights needs it")
    json_items = {}
    if "text_encoder" in source_of:
        json_items["tokenizer"] = source_of["text_encoder"].sidecar.tokenizer
    step = _step(official)
    check_absent(to, step)
    for file in {spec.file for f in found for spec in f.tensors.specs.values()}:
        if Path(file).suffix == ".safetensors":
            refuse_zero_end(Path(file))
    metadata["provenance"] = {
        "imagewam_jax": imagewam_jax.__version__,
        "sources": [
            {**file, "part": f.layout.component, "recognised": f.layout.name}
            for f in found
            for file in file_checksums(f.path)
        ],
        "expert": expert,
        "given": overrides,
        "dtype": dtype or "as in the sources",
        "carried": {name: value for f in found for name, value in _carried(f).items()},
    }
    # In a run's folder of checkpoints the lock is that of the run.
    locked = to.parent if to.absolute().name == CHECKPOINTS_FOLDER else to
    with only_writer(lock_of(locked), "imagewam convert"):
        write_streams(to, step, streams, metadata, **json_items)
    print(f"{to}: step {step}, {', '.join(sorted(streams))}")


def _check_settings(f: RecognizedSource) -> list[str]:
    """Check the training config beside a policy, and return what is to be said of it."""
    if f.layout.component != "policy" or not f.sidecar.configs:
        return []
    files = " and ".join(map(str, f.sidecar.configs))
    try:
        notes = check_settings(f.sidecar.metadata, f.metadata.overrides)
    except ConversionError as error:
        raise ConversionError(f"{files}: {error}") from error
    return [f"{files}: {note}" for note in notes]


OFFICIAL = "official"  # the dataset's name, for a checkpoint that does not give it
NO_CONFIG = (
    "without --config (such as configs/libero.py:4b) the policy is one for a single camera and no "
    "known dataset: what cameras it sees, and how, is not in weights"
)


NO_STATISTICS = (
    f"no {STATISTICS_FILE} lies beside the policy: without the statistics of its training it "
    "cannot act in real units; put the file there, or give it as --statistics FILE"
)


def _stream(conversions: Sequence[Conversion], tree: str, dtype: str | None) -> Stream:
    """One tree of the checkpoint, with all components that are in it."""
    chosen = [c for c in conversions if c.tree == tree]
    flat = {path: leaf for c in chosen for path, leaf in flatten(c.abstract).items()}
    if dtype is not None:
        flat = {p: jax.ShapeDtypeStruct(x.shape, DTYPES[dtype]) for p, x in flat.items()}
    stacked = frozenset(path for c in chosen for path in stacked_paths(c.rules))

    def cast() -> Iterator[Piece]:
        for c in chosen:
            for piece in pieces(c.rules, c.source):
                target = flat[piece.path].dtype
                yield piece._replace(array=piece.array.astype(target, copy=False))

    return Stream(unflatten(flat), stacked, cast)


def _step(official: RecognizedSource | None) -> int:
    """The training step of an official checkpoint, and 0 for other weights."""
    step = None if official is None else official.values.get("step")
    if step is None:
        return 0
    if type(step) is not int or step < 0:  # it becomes the name of a folder
        raise ConversionError(f"{official.path}: step is {step!r}, expected a count")
    return step


def _carried(f: RecognizedSource) -> dict[str, int]:
    """The values of tensors that the layout has and no model of ours."""
    carried = {}
    for name in f.layout.carried:
        if name in f.tensors.specs:
            value = f.tensors.read(name)
            if value.size != 1:
                raise ConversionError(f"{f.path}: {name} has shape {value.shape}, expected ()")
            carried[name] = int(value.item())
    return carried


def _statistics(
    metadata: dict[str, Any], f: RecognizedSource, policy: ImageWAMConfig
) -> dict[str, Stream]:
    """Put the statistics of an official checkpoint into `metadata`, and return the stream of its
    normalizers if the mode of normalization is known."""
    sidecar = f.sidecar
    metadata["official"] = {"config": sidecar.metadata, "statistics": sidecar.statistics}
    if sidecar.statistics is None:
        print(NO_STATISTICS)
        return {}
    embodiment = find(f.metadata, "embodiment")
    dims = {"action": policy.expert.action_dim, "state": policy.proprio_dim}
    statistics = global_statistics(sidecar.statistics, embodiment, dims, sidecar.metadata)
    name = metadata["config"]["data"]["dataset"] or embodiment or OFFICIAL
    metadata["datasets"] = [name]
    source = {"file": sidecar.statistics_file.name, "official": True}
    metadata["statistics"] = {name: {"source": source, **statistics_to_json(statistics)}}
    mode = metadata["config"]["data"]["normalization"]
    if not mode:
        print(
            "the mode of normalisation is not known: give --set normalization=min/max (official "
            "LIBERO), z-score (official RoboTwin) or another; without, the policy cannot act in "
            "real units"
        )
        return {}
    both = (make_normalizer(statistics[field], mode) for field in ("action", "state"))
    stacked = [
        stack_normalizers([n], dim or len(n.scale))
        for n, dim in zip(both, dims.values(), strict=True)
    ]
    return {"normalizers": stream_of(normalizer_tree(*stacked))}
