"""LoRA factors in official checkpoints (docs/spec/imagewam_flux2.md, 8.2).

A linear layer `x` with an adapter is `x.base.weight` [out, in], `x.lora_A` [rank, in] and
`x.lora_B` [out, rank]; its weight is `W + (alpha / rank) B A`. `alpha` is not in the file, but in
the training config.
"""

import math

import numpy as np

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.tensors import (
    DTYPES,
    TensorSource,
    TensorSpec,
    dtype_name,
    read_checked,
)
from imagewam_jax.weights.io.zeros import refuse_zeros
from imagewam_jax.weights.layouts.metadata import Metadata, Specs, find, size

BASE, FACTOR_A, FACTOR_B = ".base.weight", ".lora_A", ".lora_B"


def merged(source: TensorSource, metadata: Metadata) -> TensorSource:
    """The source, with its adapters (if any) merged into their weights. ConversionError: alpha is
    not known, or an adapter does not have the rank that the training config gives."""
    rank = lora_rank(source.specs)
    if rank is None:
        return source
    file = next(iter(source.specs.values())).file
    alpha = find(metadata, "lora_alpha", *_in_config("alpha"))
    if alpha is None:
        raise ConversionError(
            f"{file}: has LoRA factors of rank {rank}; the file does not hold alpha, put the "
            "training config beside it or give --set lora_alpha=... (official runs: the rank)"
        )
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise ConversionError(f"{file}: the alpha of its LoRA factors is {alpha!r}")
    given = find(metadata, *_in_config("rank"))
    merged = MergedLora(source, float(alpha))
    for name, found in merged.ranks.items():
        if given is not None and found != given:
            raise ConversionError(
                f"{file}: the rank of its LoRA factors is given as {given}, that of {name} is "
                f"{found}"
            )
    return merged


def _in_config(name: str) -> tuple[str, ...]:
    return f"model.flux2_lora_config.{name}", f"flux2_lora_config.{name}", name


def lora_rank(specs: Specs) -> int | None:
    """The rank of the first adapter; None if there is none."""
    names = (name for name in specs if name.endswith(FACTOR_A))
    first = next(names, None)
    return None if first is None else size(specs, first, 0)


def state(specs: Specs) -> str:
    """Describe the adapters in a few words, for the terminal; empty if there are none."""
    rank = lora_rank(specs)
    return "" if rank is None else f"LoRA factors of rank {rank}, to be merged"


class MergedLora:
    """A source with every adapter merged into its weight.

    The sum is computed in float32 and cast back to the dtype of the base weight. `ranks` has the
    rank of each layer's adapter; they can differ.
    """

    def __init__(self, source: TensorSource, alpha: float):
        """ConversionError: an adapter is incomplete, has an unsupported dtype, or its shapes do not
        fit each other; or a layer has a plain weight besides the one with an adapter."""
        self._source, self._alpha = source, alpha
        self.specs: dict[str, TensorSpec] = {}
        self.ranks: dict[str, int] = {}
        for name, spec in source.specs.items():
            if name.endswith(BASE):
                layer = name.removesuffix(BASE)
                if f"{layer}.weight" in source.specs:
                    raise ConversionError(f"{spec.file}: has both {name} and {layer}.weight")
                a, b = (self._factor(layer, factor, spec) for factor in (FACTOR_A, FACTOR_B))
                self.specs[f"{layer}.weight"], self.ranks[layer] = spec, _rank(layer, spec, a, b)
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
        base, a, b = (read_checked(self._source, layer + end) for end in (BASE, FACTOR_A, FACTOR_B))
        for part, array in ((BASE, base), (FACTOR_A, a)):  # B starts at zero
            refuse_zeros(array, layer + part, self._source.specs[layer + part].file)
        update = (self._alpha / a.shape[0]) * (b.astype(np.float32) @ a.astype(np.float32))
        return (base.astype(np.float32) + update).astype(base.dtype)

    def _factor(self, layer: str, factor: str, base: TensorSpec) -> TensorSpec:
        if layer + factor not in self._source.specs:
            raise ConversionError(f"{base.file}: {layer + BASE} has no {factor.removeprefix('.')}")
        spec = self._source.specs[layer + factor]
        if spec.dtype not in DTYPES:
            raise ConversionError(
                f"{spec.file}: {layer + factor} is of {spec.dtype}, expected {dtype_name(DTYPES)}"
            )
        return spec


def _rank(layer: str, base: TensorSpec, a: TensorSpec, b: TensorSpec) -> int:
    """The rank of two factors. ConversionError: they do not fit the matrix."""
    if len(base.shape) == len(a.shape) == len(b.shape) == 2:
        (out, in_), (rank, _) = base.shape, a.shape
        if rank and a.shape == (rank, in_) and b.shape == (out, rank):
            return rank
    raise ConversionError(
        f"{base.file}: {layer} is {base.shape}, its factors are B {b.shape} and A {a.shape}"
    )
