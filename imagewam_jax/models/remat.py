"""What the backward pass keeps of each layer, and what it computes again (rematerialization).

A setting is one text. Either it is a whole policy:

    full            nothing is kept but the layer's input
    save_matmuls    the results of all products with kernels
    none            everything; nothing is computed again

or it names the tensors that are kept, such as `qkv+attended`. What has `@host` behind its name is
kept in the memory of the host, from which the backward pass fetches it: `attended+mlp@host`.
"""

from collections.abc import Callable
from types import MappingProxyType

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

Policy = Callable[..., object]

POLICIES: MappingProxyType[str, Policy] = MappingProxyType(
    {
        "full": jax.checkpoint_policies.nothing_saveable,
        "save_matmuls": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "none": jax.checkpoint_policies.everything_saveable,
    }
)
# The names that tensors of a layer have. Blocks give all but `attended`, which the attention's
# kernel gives: some kernels keep more than their result for the backward pass.
QKV, ATTENDED, MLP, OUT = "qkv", "attended", "mlp", "out"
NAMES = MappingProxyType(
    {
        QKV: "queries, keys and values, before their norm",
        ATTENDED: "what attention gives",
        MLP: "gate and up of the MLP",
        OUT: "what a layer's branches add to its tokens, before their gates",
    }
)
_HOST = "@host"


def named(x: Float[Array, "..."], name: str) -> Float[Array, "..."]:
    """`x`, which a setting can keep by one of `NAMES`; outside of `jax.checkpoint` just `x`."""
    assert name in NAMES, name
    return checkpoint_name(x, name)


def remat_policy(setting: str) -> Policy:
    """The policy of `jax.checkpoint` for a setting. ValueError: it is none, or repeats a name."""
    if setting in POLICIES:
        return POLICIES[setting]
    words = setting.split("+")
    names = [word.removesuffix(_HOST) for word in words]
    if unknown := [name for name in names if name not in NAMES]:
        raise ValueError(
            f"unknown remat policy {setting!r}; choose from {sorted(POLICIES)}, or name what is "
            f"kept, such as 'qkv+attended' or 'attended+mlp{_HOST}': {unknown[0]!r} is none of "
            f"{sorted(NAMES)}"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"remat policy {setting!r} names {twice[0]!r} twice; say it once")
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[word for word in words if not word.endswith(_HOST)],
        names_which_can_be_offloaded=[
            word.removesuffix(_HOST) for word in words if word.endswith(_HOST)
        ],
        offload_src="device",
        offload_dst="pinned_host",
    )
