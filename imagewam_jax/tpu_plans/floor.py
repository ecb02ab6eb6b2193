"""The least that the stages of a step must take on a chip at its peaks, however they are written.

Each stage takes the longest of its products of matrices, of the reading of what it needs from the
chip's memory, and of what it must receive from other chips. Activations are left out: they could
stay near the units that compute.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from imagewam_jax.models import flops
from imagewam_jax.models.flops import Sizes
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import Params, flatten
from imagewam_jax.training.chips import Chip

SENT_BYTES = 2  # of a parameter or gradient between chips: bfloat16


@dataclass(frozen=True)
class Stage:
    """What a part of a step must do on each chip, in FLOPs and in bytes."""

    name: str
    flops: float
    read: float = 0.0
    received: float = 0.0

    def seconds(self, chip: Chip, links: float) -> float:
        """At the chip's peaks; `links` are the bytes per second that it receives."""
        return max(self.flops / chip.flops, self.read / chip.hbm_bandwidth, self.received / links)


def training_stages(
    computed: float, mesh: Mesh, trained: Params, frozen: Params
) -> tuple[Stage, ...]:
    """A train step, as one stage: what must be computed, or what FSDP needs if it is longer.

    computed: FLOPs on all chips, without recomputation. Parameters (abstract, with shardings) are
    gathered twice, forward and backward; gradients are scattered once, and then summed over copies
    of the parameters; both in bfloat16.
    """
    received = 0.0
    for params, passes in ((trained, 3), (frozen, 2)):
        for leaf in jax.tree.leaves(params):
            own = math.prod(leaf.sharding.shard_shape(leaf.shape))
            divided = "fsdp" in jax.tree.leaves(tuple(leaf.sharding.spec))
            parts = mesh.shape["fsdp"] if divided else 1
            received += passes * SENT_BYTES * own * (parts - 1)
            copies = mesh.shape["data"] * (1 if divided else mesh.shape["fsdp"])
            if passes == 3:
                received += 2 * (copies - 1) / copies * SENT_BYTES * own
    return (Stage("train step", computed / mesh.size, received=received),)


def acting_stages(
    policy: ImageWAMConfig,
    sizes: Sizes,
    mesh: Mesh,
    *,
    steps: int,
    weight_bytes: int,
    autoencoder_flops: float,
    autoencoder: Params,
) -> tuple[Stage, ...]:
    """Acting: encoding the images, prefill, and Euler steps.

    weight_bytes: of one weight, and of one number of the KV cache. Encoding and prefill read their
    weights once, each Euler step those of the expert and the keys and values of the context, but
    for the weights of modulations, which all steps share. autoencoder: abstract; its decoder is not
    read. `mesh.tensor` divides weights, all of the mesh the rest.
    """
    chips, tensor = mesh.size, mesh.shape["tensor"]
    kernels = flops.kernels(policy)

    def weights(found: Iterable[flops.Kernel]) -> float:
        return weight_bytes * sum(kernel.size for kernel in found) / tensor

    expert = [kernel for kernel in kernels if kernel.path[0] == "expert"]
    once = [kernel for kernel in expert if kernel.rows == ("sample",)]
    context = [k for k in kernels if k.path[0] != "expert" and "head" not in k.path]
    rows, columns = sizes.reference_grid
    backbone, images = policy.backbone, sizes.references * rows * columns
    tokens = sizes.text_tokens + (policy.proprio_dim is not None) + images
    kept = tokens * sum(backbone.group_sizes) + images * backbone.extra_attentions.get("image", 0)
    cache = 2 * kept * backbone.kv_heads * backbone.head_dim
    each = weights(expert) - weights(once) + weight_bytes * sizes.batch * cache / chips
    encoder = sum(
        leaf.size * leaf.dtype.itemsize
        for path, leaf in flatten(autoencoder).items()
        if "decoder" not in path
    )
    return (
        Stage("images through the autoencoder", autoencoder_flops / chips, encoder),
        Stage("prefill", flops.prefill(policy, sizes).total / chips, weights(context)),
        Stage(
            f"{steps} Euler steps",
            flops.euler_steps(policy, sizes, steps).total / chips,
            weights(once) + steps * each,
        ),
    )
