"""Low-rank additions to frozen kernels (LoRA; docs/spec/imagewam_flux2.md, 8.2).

    y = x W + (alpha / rank) (x A) B

Every linear layer in the backbone's stacked layers has one. The official code has one A for
the fused q, k and v (and gate and up) of a layer; here each has its own, which can express more,
never less.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from imagewam_jax.models.layers import Linear, LowRank, fan_in_uniform


@dataclass(frozen=True)
class LoRAConfig:
    """Rank 0 means no LoRA. Officially `alpha` is the rank, 16 for FLUX.2 klein 4B, 32 for 9B."""

    rank: int = 0
    alpha: float = 0.0

    def __post_init__(self):
        if self.rank < 0 or (self.rank and self.alpha <= 0):
            raise ValueError(f"rank {self.rank} with alpha {self.alpha}, expected positive numbers")


def add_lora(layers: nnx.Module, config: LoRAConfig, rngs: nnx.Rngs) -> None:
    """Gives every linear layer of a stack a low-rank addition, which is zero at first."""
    for _, module in list(nnx.iter_graph(layers)):
        if isinstance(module, Linear):
            module.lora = _low_rank(module, config, rngs)


def _low_rank(linear: Linear, config: LoRAConfig, rngs: nnx.Rngs) -> LowRank:
    count, inputs, outputs = linear.kernel.shape
    layer, in_name, out_name = linear.kernel.get_metadata("axes")
    keys = jax.random.split(rngs.params(), count)
    a = jax.vmap(lambda key: fan_in_uniform(key, (inputs, config.rank), jnp.float32))(keys)
    return LowRank(
        a=nnx.Param(a, axes=(layer, in_name, "rank")),
        b=nnx.Param(jnp.zeros((count, config.rank, outputs)), axes=(layer, "rank", out_name)),
        scale=config.alpha / config.rank,
    )


def merged_kernel(
    kernel: Float[Array, "inputs outputs"],
    a: Float[Array, "inputs rank"],
    b: Float[Array, "rank outputs"],
    scale: float,
) -> Float[Array, "inputs outputs"]:
    """A layer's kernel with its low-rank addition merged in, in the kernel's dtype.

    Computed in float32, as officially. NumPy arrays stay NumPy arrays.
    """
    float32 = jnp.float32
    added = a.astype(float32) @ b.astype(float32)
    return (kernel.astype(float32) + scale * added).astype(kernel.dtype)
