"""Helpers for tests of weights: copy, change and shard small foreign weights, and compare trees."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import abstract_params, unflatten
from imagewam_jax.weights.io.tensors import ArraySource, TensorSource, TensorSpec
from imagewam_jax.weights.layouts.imagewam import imagewam_rules
from imagewam_jax.weights.layouts.mapping import (
    Rule,
    check,
    foreign_shapes,
    pieces,
    stacked_paths,
)

Tensors = dict[str, np.ndarray]


def copy_case(case: Path, folder: Path, weights: str = "weights.safetensors") -> Path:
    """Copy the weights and the config of a recorded case to a folder; return the weights' path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (weights, "config.json"):
        shutil.copyfile(case / name, folder / name)
    return folder / weights


def change(path: Path, edit: Callable[[Tensors], Tensors | None]) -> Path:
    """Edit the tensors of a safetensors file in place, and return its path."""
    tensors = load_file(path)
    save_file(edit(tensors) or tensors, path)
    return path


def write_shards(tensors: Mapping[str, np.ndarray], folder: Path, shards: int = 2) -> Path:
    """Write a folder of several files and an index, as diffusers and transformers do."""
    folder.mkdir(parents=True, exist_ok=True)
    names, weight_map = sorted(tensors), {}
    for i in range(shards):
        file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def specs_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TensorSpec]:
    """Tensors of these shapes in float32, as a file has them."""
    return {n: TensorSpec(shape, np.dtype(np.float32), "file") for n, shape in shapes.items()}


def official_specs(config: ImageWAMConfig) -> dict[str, TensorSpec]:
    """The tensors of the official checkpoint of a policy, without aliases."""
    return specs_of(foreign_shapes(imagewam_rules(config), abstract_params(config)))


def to_tree(
    rules: Sequence[Rule],
    source: TensorSource | Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    what: str,
) -> dict[str, Any]:
    """The tree that foreign tensors map to, in memory; `like` has its shapes, `what` names it."""
    source = ArraySource(source, what) if isinstance(source, Mapping) else source
    check(rules, source.specs, like, what)
    layers: dict[str, list[np.ndarray]] = {}
    for piece in pieces(rules, source):
        layers.setdefault(piece.path, []).append(piece.array)
    stacked = stacked_paths(rules)
    return unflatten({k: np.stack(v) if k in stacked else v[0] for k, v in layers.items()})


def converted(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The metadata and all trees of a checkpoint, as NumPy arrays in the dtypes that were saved."""
    checkpoints, step = open_checkpoint(folder)
    metadata = checkpoints.restore_json(step, "metadata")
    abstract = {name: checkpoints.abstract(step, name) for name in checkpoints.trees(step)}
    trees = checkpoints.restore(step, abstract)
    checkpoints.close()
    return metadata, jax.tree.map(np.asarray, trees)


def assert_same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Assert that both trees have the same arrays, bit for bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
