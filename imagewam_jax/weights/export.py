"""Exports a checkpoint to the layouts of others: check everything, then stream the tensors."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from imagewam_jax.checkpoints.layer_reader import SavedTree
from imagewam_jax.checkpoints.merged_lora import NO_LORA, saved_policy, without_lora
from imagewam_jax.checkpoints.store import Checkpoints, check_space, open_checkpoint
from imagewam_jax.config.schema import DTYPES, choose
from imagewam_jax.errors import CheckpointError, ConversionError
from imagewam_jax.files import partial_path
from imagewam_jax.models.autoencoders.flux2 import Flux2AutoencoderConfig
from imagewam_jax.models.autoencoders.kl import AutoencoderKLConfig
from imagewam_jax.models.backbones.flux2 import Flux2Config
from imagewam_jax.models.backbones.omnigen2 import OmniGen2Config
from imagewam_jax.models.backbones.ovis_u1 import OvisU1Config
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import flatten
from imagewam_jax.storage.objects import AnyPath
from imagewam_jax.weights.components import COMPONENTS, checkpoint_components
from imagewam_jax.weights.io.safetensors_writer import write_safetensors, write_sharded
from imagewam_jax.weights.io.tensors import (
    ArraySource,
    Joined,
    Progress,
    TensorSource,
    dtype_name,
    source_bytes,
)
from imagewam_jax.weights.io.torch_files import write_torch_file
from imagewam_jax.weights.layouts import registry as layouts
from imagewam_jax.weights.layouts.autoencoder_kl import autoencoder_kl_json
from imagewam_jax.weights.layouts.families import FAMILIES
from imagewam_jax.weights.layouts.flux2_autoencoder_diffusers import (
    flux2_autoencoder_diffusers_json,
)
from imagewam_jax.weights.layouts.flux2_diffusers import flux2_diffusers_json
from imagewam_jax.weights.layouts.imagewam_checkpoint import checkpoint_contents
from imagewam_jax.weights.layouts.mapping import ForeignView, under
from imagewam_jax.weights.layouts.omnigen2 import omnigen2_json
from imagewam_jax.weights.layouts.registry import Layout
from imagewam_jax.weights.official import official_sidecar

MAX_SHARD_BYTES = 10 * 10**9


class Target(NamedTuple):
    """The destination of a component: its layout, its file or folder in the output, and for
    diffusers the function that makes its `config.json`."""

    layout: Layout
    name: str
    json: Callable[[Any], dict[str, Any]] | None = None


# The targets by format, then by the type of a component's config; of a policy, of its backbone's.
TARGETS: dict[str, dict[type, Target]] = {
    "official": {kind: Target(layout, "model.pt") for kind, layout in layouts.POLICIES.items()},
    "flux2": {
        Flux2Config: Target(layouts.FLUX2, "transformer.safetensors"),
        Flux2AutoencoderConfig: Target(layouts.FLUX2_AUTOENCODER, "ae.safetensors"),
    },
    "ovis_u1": {
        OvisU1Config: Target(layouts.OVIS_U1, "transformer.safetensors"),
        AutoencoderKLConfig: Target(layouts.AUTOENCODER_KL, "vae.safetensors"),
    },
    "diffusers": {
        Flux2Config: Target(layouts.FLUX2_DIFFUSERS, "transformer", flux2_diffusers_json),
        Flux2AutoencoderConfig: Target(
            layouts.FLUX2_AUTOENCODER_DIFFUSERS, "vae", flux2_autoencoder_diffusers_json
        ),
        OmniGen2Config: Target(layouts.OMNIGEN2, "transformer", omnigen2_json),
        AutoencoderKLConfig: Target(layouts.AUTOENCODER_KL, "vae", autoencoder_kl_json),
    },
}
# The formats of which a component is one file, as opposed to a folder.
FILES = ("flux2", "ovis_u1")
# What each format holds, for messages.
HOLDS = {
    "official": "a whole policy on " + " or ".join(family.title for family in FAMILIES),
    "flux2": "a FLUX.2 transformer and autoencoder",
    "ovis_u1": "an Ovis-U1 transformer and an AutoencoderKL",
    "diffusers": "a FLUX.2 or OmniGen2 transformer and an autoencoder",
}


class Job(NamedTuple):
    """A checked component, and its tensors in the foreign layout."""

    config: Any
    target: Target
    source: TensorSource


def export(
    checkpoint: AnyPath | str,
    format: str,
    to: Path,
    *,
    dtype: str | None = None,
    weights: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write all components of a checkpoint that a format has a place for, and print which.

    format: one of `TARGETS`.
    to: a folder; for one of `FILES` and one component it can be a `.safetensors` file.
    dtype: "float32" or "bfloat16"; None keeps the dtype of each tensor.
    weights: "ema" or "params" of a training run; None takes the moving average if there is one.

    CheckpointError, ConversionError: it cannot be exported; `to` is complete or absent.
    """
    choose(TARGETS, format, "--format")
    target_dtype = None if dtype is None else np.dtype(choose(DTYPES, dtype, "--dtype"))
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise CheckpointError(f"{to} is there already; name a path that is not")
    checkpoints, step = open_checkpoint(checkpoint)
    with contextlib.closing(checkpoints):
        metadata = checkpoints.restore_json(step, "metadata")
        jobs = plan(checkpoints, step, metadata, format, target_dtype, weights)
        single = to.suffix == ".safetensors"
        if single and (format not in FILES or len(jobs) > 1):
            named = " and ".join(job.target.name for job in jobs)
            raise ConversionError(f"{to}: name a folder, for {named}")
        total = sum(source_bytes(job.source) for job in jobs)
        copies = 2 if format == "official" else 1  # PyTorch saves from files of the same size
        with (
            _appearing(to, copies * total) as out,
            tqdm(total=copies * total, unit="B", unit_scale=True, desc=f"writing {to.name}") as bar,
        ):
            if not single:
                out.mkdir()
            for job in jobs:
                path = out if single else out / job.target.name
                if format == "official":
                    _write_official(path, job, metadata, step, bar.update)
                elif format in FILES:
                    write_safetensors(path, job.source, progress=bar.update)
                else:
                    _write_diffusers(path, job, max_shard_bytes, bar.update)
    for job in jobs:
        path = to if single else to / job.target.name
        dtypes = dtype_name({spec.dtype for spec in job.source.specs.values()})
        print(f"{path}: {job.target.layout.name}, {len(job.source.specs)} tensors in {dtypes}")


def plan(
    checkpoints: Checkpoints,
    step: int,
    metadata: Mapping[str, Any],
    format: str,
    dtype: np.dtype | None,
    weights: str | None,
) -> list[Job]:
    """The components to write; prints which ones are not. CheckpointError, ConversionError: nothing
    can be written."""
    where = str(checkpoints.directory / str(step))
    trees = checkpoints.trees(step)
    components = checkpoint_components(metadata, trees, where)
    jobs, absent = [], []
    lora = NO_LORA  # these layouts have no place for adapters, which are merged into kernels
    if "policy" in components:
        lora, components["policy"] = components["policy"].lora, without_lora(components["policy"])
    if "backbone" in components and "expert" in metadata["config"].get("model", {}):
        absent.append("first weights of the action expert")
    if "policy" in components and format != "official":
        components["backbone"] = components.pop("policy").backbone
        print("the action expert and the robot state's embedding are not part of this layout")
    for name, config in components.items():
        target = _target(format, config)
        if target is None:
            absent.append(name)
            continue
        tree = COMPONENTS[name].tree
        if tree == "params":
            tree = checkpoints.weights(step, weights)
            saved = saved_policy(checkpoints, step, tree, lora)
        else:
            saved = SavedTree(checkpoints, step, tree)
        source = _source(saved, name, config, target.layout, dtype, metadata, f"{where}/{tree}")
        jobs.append(Job(config, target, source))
    if not jobs:
        found = " and ".join(sorted(components))
        raise ConversionError(f"{where}: has {found}; the {format} layout is of {HOLDS[format]}")
    if absent:
        print(f"not written, the {format} layout has no place for it: {', '.join(sorted(absent))}")
    return jobs


def _target(format: str, config: Any) -> Target | None:
    """Where a component goes; None if the format has no place for it."""
    is_policy = isinstance(config, ImageWAMConfig)
    if is_policy is not (format == "official"):
        return None
    return TARGETS[format].get(type(config.backbone if is_policy else config))


def _source(
    saved: SavedTree,
    component: str,
    config: Any,
    layout: Layout,
    dtype: np.dtype | None,
    metadata: Mapping[str, Any],
    where: str,
) -> TensorSource:
    """The tensors of a component in the chosen dtype, with those that only the layout has."""
    path = COMPONENTS[component].path
    saved.check(COMPONENTS[component].abstract(config), path)
    rules = under(layout.rules(config), path=path)
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype if dtype is None else dtype),
        saved.abstract,
    )
    dtypes = {path: leaf.dtype for path, leaf in flatten(like).items()}

    def read(path: str, layer: int | None) -> np.ndarray:
        return saved(path, layer).astype(dtypes[path], copy=False)

    try:
        source = ForeignView(rules, like, read, where)
    except ConversionError as error:
        raise ConversionError(f"{error}; choose one with --dtype") from None
    if not layout.carried:
        return source
    # They are counters of training: 0 if the checkpoint was not made from this layout.
    carried = metadata.get("provenance", {}).get("carried", {})
    values = {name: np.array(carried.get(name, 0), np.int64) for name in layout.carried}
    return Joined(source, ArraySource(values, where))


def _write_official(
    path: Path, job: Job, metadata: Mapping[str, Any], step: int, progress: Progress
) -> None:
    # The cheap steps that can fail come first.
    texts = official_sidecar(job.config, metadata, job.source.specs)
    contents = checkpoint_contents(job.config, job.source.specs, step)
    write_torch_file(path, contents, job.source, progress)
    for name, text in texts.items():
        (path.parent / name).write_text(text, encoding="utf-8")


def _write_diffusers(folder: Path, job: Job, max_shard_bytes: int, progress: Progress) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(job.target.json(job.config), indent=2) + "\n")
    stem = "diffusion_pytorch_model"
    write_sharded(folder, stem, job.source, max_bytes=max_shard_bytes, progress=progress)


@contextlib.contextmanager
def _appearing(to: Path, needed: int) -> Iterator[Path]:
    """Yield a temporary path, which becomes `to` at the end or is removed on an error.

    CheckpointError: there is too little space, or writing failed.
    """
    to = to.absolute()
    check_space(to.parent, needed)
    partial = partial_path(to)
    try:
        partial.mkdir(parents=True)
        yield partial / to.name
        os.replace(partial / to.name, to)
    except OSError as error:
        raise CheckpointError(f"{to} could not be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
