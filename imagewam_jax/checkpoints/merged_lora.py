"""Merges the LoRA factors of a policy into its kernels, for acting and for other layouts."""

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
_LORA = ".lora."


def without_lora(policy: ImageWAMConfig) -> ImageWAMConfig:
    """The config of the policy with merged kernels."""
    return dataclasses.replace(policy, lora=NO_LORA)


def merged_params(params: Params, lora: LoRAConfig) -> Params:
    """The parameters with merged kernels, which keep their dtypes and the places where they lie."""
    if not lora.rank:
        return params
    flat = flatten(params)
    kept = {path: leaf for path, leaf in flat.items() if _LORA not in path}
    merge = jax.vmap(lambda kernel, a, b: merged_kernel(kernel, a, b, _scale(lora)))
    for path, kernel in kept.items():
        if (factors := _factors(path, flat)) is not None:
            merge_there = jax.jit(merge, out_shardings=kernel.sharding)
            kept[path] = merge_there(kernel, *(flat[name] for name in factors))
    return unflatten(kept)


def saved_policy(checkpoints: Checkpoints, step: int, tree: str, lora: LoRAConfig) -> SavedTree:
    """A reader of a checkpoint's parameters that returns merged kernels."""
    if not lora.rank:
        return SavedTree(checkpoints, step, tree)
    return _MergedTree(checkpoints, step, tree, lora)


class _MergedTree(SavedTree):
    """Merges LoRA factors into a kernel when it is read."""

    def __init__(self, checkpoints: Checkpoints, step: int, tree: str, lora: LoRAConfig):
        super().__init__(checkpoints, step, tree)
        self._lora, self._all = lora, flatten(self.abstract)
        self.abstract = unflatten({p: leaf for p, leaf in self._all.items() if _LORA not in p})

    def __call__(self, path: str, layer: int | None) -> np.ndarray:
        kernel, factors = super().__call__(path, layer), _factors(path, self._all)
        if factors is None:
            return kernel
        a, b = (super(_MergedTree, self).__call__(name, layer) for name in factors)
        return merged_kernel(kernel, a, b, _scale(self._lora))


def _scale(lora: LoRAConfig) -> float:
    return lora.alpha / lora.rank


def _factors(path: str, flat: Mapping[str, object]) -> tuple[str, str] | None:
    """The paths of a kernel's two LoRA factors; None if it has none."""
    names = tuple(path.removesuffix(".kernel") + f"{_LORA}{factor}" for factor in "ab")
    return names if path.endswith(".kernel") and names[0] in flat else None
