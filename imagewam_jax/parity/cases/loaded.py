"""A checkpoint's parts as modules that compute in one dtype."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from imagewam_jax.checkpoints.merged_lora import NO_LORA, merged_params
from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.config.schema import DTYPES, choose
from imagewam_jax.models.parameters import flatten, module_builder
from imagewam_jax.storage.objects import AnyPath
from imagewam_jax.weights.components import COMPONENTS, checkpoint_components
from imagewam_jax.weights.io.tensors import dtype_name
from imagewam_jax.weights.layouts.mapping import ForeignView, Rule


class Loaded:
    """The parts of a checkpoint, each read when it is asked for, with parameters cast to `dtype`.

    `weights` is "ema" or "params" of a training run; None takes the average where there is one.

    `configs` has the parts that the checkpoint consists of; a policy is one part, whose backbone
    can be asked for by itself. Positions and times of a policy are in `dtype` too: the official
    code has them in the dtype of its parameters. The options of the config that concern speed
    (kernel, rematerialization) are ignored.
    """

    def __init__(self, path: AnyPath | str, dtype: str = "float32", weights: str | None = None):
        """CheckpointError, ConfigError: it cannot be read, or has no part that can be compared."""
        choose(DTYPES, dtype, "--compute-dtype")
        self.dtype = dtype
        self._checkpoints, self._step = open_checkpoint(path)
        self.path = self._checkpoints.directory / str(self._step)
        self.metadata = self._checkpoints.restore_json(self._step, "metadata")
        trees = self._checkpoints.trees(self._step)
        self._params = self._checkpoints.weights(self._step, weights)
        self.configs = checkpoint_components(self.metadata, trees, str(self.path))
        self._modules: dict[str, nnx.Module] = {}
        self._trees: dict[str, dict[str, Any]] = {}
        self._lora = NO_LORA
        if "policy" in self.configs:
            self._lora = self.configs["policy"].lora
            self.configs["policy"] = dataclasses.replace(
                self.configs["policy"],
                lora=NO_LORA,  # merged into the kernels when they are read
                coordinate_dtype=dtype,
                attention="xla",
                remat="full",
                unroll=1,
            )

    def __contains__(self, part: str) -> bool:
        return self.config(part) is not None

    def config(self, part: str) -> Any:
        """The sizes of a part, None if it is not there."""
        if part == "backbone" and "policy" in self.configs:
            return self.configs["policy"].backbone
        if part == "expert" and self.first_expert is not None:
            return COMPONENTS["expert"].config(self.metadata["config"])
        return self.configs.get(part)

    @property
    def first_expert(self) -> str | None:
        """The recipe of an action expert's first weights, if the checkpoint holds no others."""
        return self.metadata.get("provenance", {}).get("expert")

    @property
    def stored_dtype(self) -> str:
        """The dtype that the parameters are saved in, as text."""
        trees = {self._saved_as(COMPONENTS[part].tree) for part in self.configs}
        abstract = [self._checkpoints.abstract(self._step, tree) for tree in trees]
        return dtype_name({np.dtype(leaf.dtype) for leaf in jax.tree.leaves(abstract)})

    def module(self, part: str) -> nnx.Module:
        """A part that the checkpoint has, with its parameters."""
        if part == "backbone" and "policy" in self.configs:
            return self.module("policy").backbone
        if part not in self._modules:
            build = module_builder(lambda: COMPONENTS[part].module(self.config(part)))
            self._modules[part] = build(self.tree(part))
        return self._modules[part]

    def tree(self, part: str) -> dict[str, Any]:
        """The parameters of a part, in nested dictionaries."""
        if part == "backbone" and "policy" in self.configs:
            return self.tree("policy")["backbone"]
        name, path = COMPONENTS[part].tree, COMPONENTS[part].path
        if name not in self._trees:
            self._trees[name] = self._restore(name)
        return self._trees[name][path] if path else self._trees[name]

    def close(self) -> None:
        self._checkpoints.close()

    def _saved_as(self, tree: str) -> str:
        return self._params if tree == "params" else tree

    def _restore(self, name: str) -> dict[str, Any]:
        saved = self._saved_as(name)
        abstract = self._checkpoints.abstract(self._step, saved)
        for part in self.configs:
            if COMPONENTS[part].tree == name:
                config, path = self.configs[part], COMPONENTS[part].path
                if part == "policy":
                    config = dataclasses.replace(config, lora=self._lora)
                expected = COMPONENTS[part].abstract(config)
                # An expert's first weights, which may lie beside a backbone, stay as saved.
                abstract = abstract | {path: expected} if path else expected
        dtype = DTYPES[self.dtype]
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), abstract)
        restored = self._checkpoints.restore(self._step, {saved: abstract})[saved]
        return merged_params(restored, self._lora) if name == "params" else restored


def foreign_view(rules: list[Rule], tree: Mapping[str, Any], where: str) -> ForeignView:
    """Our tree under the names of another layout; each tensor is converted when it is read."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(tree).items()}
    return ForeignView(rules, tree, lambda p, i: flat[p] if i is None else flat[p][i], where)
