"""LoRA factors in official checkpoints (spec imagewam_flux2, 8.2).

A linear layer `x` with adapters is `x.base.weight` [out, in], `x.lora_A` [rank, in] and
`x.lora_B` [out, rank]; it computes `W + (alpha / rank) B A`.
"""

from collections.abc import Mapping

import numpy as np

BASE, FACTOR_A, FACTOR_B = ".base.weight", ".lora_A", ".lora_B"


def merge_lora(tensors: Mapping[str, np.ndarray], alpha: float) -> dict[str, np.ndarray]:
    """Plain tensors with every adapter folded into its weight.

    The sum is made in float32 and cast back to the dtype of the base. `alpha` comes from the
    training config: the file does not hold it. KeyError: an adapter is incomplete.
    """
    merged = {}
    for name, tensor in tensors.items():
        if name.endswith(BASE):
            layer = name.removesuffix(BASE)
            a, b = (_factor(tensors, layer, factor) for factor in (FACTOR_A, FACTOR_B))
            update = (alpha / a.shape[0]) * (b @ a)
            merged[f"{layer}.weight"] = (tensor.astype(np.float32) + update).astype(tensor.dtype)
        elif name.endswith((FACTOR_A, FACTOR_B)):
            layer = name.removesuffix(FACTOR_A).removesuffix(FACTOR_B)
            if layer + BASE not in tensors:
                raise KeyError(f"{name} has no base weight {layer + BASE}")
        else:
            merged[name] = tensor
    return merged


def _factor(tensors: Mapping[str, np.ndarray], layer: str, factor: str) -> np.ndarray:
    if layer + factor not in tensors:
        raise KeyError(f"{layer + BASE} has no {factor}")
    return tensors[layer + factor].astype(np.float32)
