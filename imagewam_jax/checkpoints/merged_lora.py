"""Policies whose low-rank additions are part of their kernels: to act, and for other layouts."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from imagewam_jax.checkpoints.layer_reader import SavedTree
from imagewam_jax.checkpoints.store import Checkpoints
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.lora import LoRAConfig, merged_kernel
from imagewam_jax.models.parameters import Params, flatten, unflatten

NO_LORA = LoRAConfig()
_ADDED = ".lora."


def without_lora(policy: ImageWAMConfig) -> ImageWAMConfig:
    """The same policy of merged kernels."""
    return dataclasses.replace(policy, lora=NO_LORA)


def merged_params(params: Params, lora: LoRAConfig) -> Params:
    """Parameters of the policy `without_lora`, in the dtypes that kernels have."""
    if not lora.rank:
        return params
    flat = flatten(params)
    kept = {path: leaf for path, leaf in flat.items() if _ADDED not in path}
    merge = jax.jit(jax.vmap(lambda kernel, a, b: merged_kernel(kernel, a, b, _scale(lora))))
    for path in kept:
        if (added := _added(path, flat)) is not None:
            kept[path] = merge(kept[path], *(flat[name] for name in added))
    return unflatten(kept)


def saved_policy(checkpoints: Checkpoints, step: int, tree: str, lora: LoRAConfig) -> SavedTree:
    """The parameters of a checkpoint, as those of the policy `without_lora`."""
    if not lora.rank:
        return SavedTree(checkpoints, step, tree)
    return _MergedTree(checkpoints, step, tree, lora)


class _MergedTree(SavedTree):
    """Adds what is to be added when a kernel is read."""

    def __init__(self, checkpoints: Checkpoints, step: int, tree: str, lora: LoRAConfig):
        super().__init__(checkpoints, step, tree)
        self._lora, self._all = lora, flatten(self.abstract)
        self.abstract = unflatten({p: leaf for p, leaf in self._all.items() if _ADDED not in p})

    def __call__(self, path: str, layer: int | None) -> np.ndarray:
        kernel, added = super().__call__(path, layer), _added(path, self._all)
        if added is None:
            return kernel
        a, b = (super(_MergedTree, self).__call__(name, layer) for name in added)
        return merged_kernel(kernel, a, b, _scale(self._lora))


def _scale(lora: LoRAConfig) -> float:
    return lora.alpha / lora.rank


def _added(path: str, flat: Mapping[str, object]) -> tuple[str, str] | None:
    """The two factors that are added to a kernel, if it has any."""
    names = tuple(path.removesuffix(".kernel") + f"{_ADDED}{factor}" for factor in "ab")
    return names if path.endswith(".kernel") and names[0] in flat else None
