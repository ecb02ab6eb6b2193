"""LoRA factors in official checkpoints (spec imagewam_flux2, 8.2).

A linear layer `x` with adapters is `x.base.weight` [out, in], `x.lora_A` [rank, in] and
`x.lora_B` [out, rank]; it computes `W + (alpha / rank) B A`. The file does not hold `alpha`: it
comes from the training config.
"""

import numpy as np

from imagewam_jax.conversion.errors import ConversionError
from imagewam_jax.conversion.facts import Facts, Specs, find
from imagewam_jax.conversion.tensors import TensorSource, TensorSpec, read_checked

BASE, FACTOR_A, FACTOR_B = ".base.weight", ".lora_A", ".lora_B"


def merged(source: TensorSource, facts: Facts) -> TensorSource:
    """The source, with its adapters folded in if it has any. ConversionError: alpha is not
    known."""
    rank = lora_rank(source.specs)
    if rank is None:
        return source
    keys = ("lora_alpha", "model.flux2_lora_config.alpha", "flux2_lora_config.alpha", "alpha")
    alpha = find(facts, *keys)
    if alpha is None:
        file = next(iter(source.specs.values())).file
        raise ConversionError(
            f"{file}: has LoRA factors of rank {rank}; the file does not hold alpha, put the "
            "training config beside it or give --set lora_alpha=... (official runs: the rank)"
        )
    return MergedLora(source, float(alpha))


def lora_rank(specs: Specs) -> int | None:
    """The rank of the first adapter; None where there is none."""
    ranks = (spec.shape[0] for name, spec in specs.items() if name.endswith(FACTOR_A))
    return next(ranks, None)


def state(specs: Specs) -> str:
    """For people: whether there are adapters."""
    rank = lora_rank(specs)
    return "" if rank is None else f"LoRA factors of rank {rank}, to be merged"


class MergedLora:
    """A source with every adapter folded into its weight.

    The sum is made in float32 and cast back to the dtype of the base.
    """

    def __init__(self, source: TensorSource, alpha: float):
        """ConversionError: an adapter is incomplete, or its shapes do not fit each other."""
        self._source, self._alpha = source, alpha
        self.specs: dict[str, TensorSpec] = {}
        for name, spec in source.specs.items():
            if name.endswith(BASE):
                layer = name.removesuffix(BASE)
                a, b = (self._factor(layer, factor, spec) for factor in (FACTOR_A, FACTOR_B))
                if (b.shape[0], a.shape[1]) != spec.shape or a.shape[0] != b.shape[1]:
                    raise ConversionError(
                        f"{spec.file}: {layer} is {spec.shape}, its factors are B {b.shape} and "
                        f"A {a.shape}"
                    )
                self.specs[f"{layer}.weight"] = spec
            elif name.endswith((FACTOR_A, FACTOR_B)):
                layer = name.removesuffix(FACTOR_A).removesuffix(FACTOR_B)
                if layer + BASE not in source.specs:
                    raise ConversionError(f"{spec.file}: {name} has no base weight {layer + BASE}")
            else:
                self.specs[name] = spec

    def read(self, name: str) -> np.ndarray:
        layer = name.removesuffix(".weight")
        if layer + BASE not in self._source.specs:
            return self._source.read(name)
        base, a, b = (
            read_checked(self._source, layer + part) for part in (BASE, FACTOR_A, FACTOR_B)
        )
        update = (self._alpha / a.shape[0]) * (b.astype(np.float32) @ a.astype(np.float32))
        return (base.astype(np.float32) + update).astype(base.dtype)

    def _factor(self, layer: str, factor: str, base: TensorSpec) -> TensorSpec:
        if layer + factor not in self._source.specs:
            raise ConversionError(f"{base.file}: {layer + BASE} has no {factor.removeprefix('.')}")
        return self._source.specs[layer + factor]
