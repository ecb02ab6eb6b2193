"""The state of a training run, and which parameters of the policy it trains."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from imagewam_jax.errors import ConfigError
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import (
    Params,
    flatten,
    parameter_reads,
    unflatten,
)

FlatParams = dict[str, Array]  # by dotted path


class TrainState(NamedTuple):
    """A run between two steps.

    params: what is trained, in float32. frozen_params: the other parameters of the policy, in the
    dtype that the run computes in. ema: the moving average of `params`, None where there is none.
    All are flat, and the optimizer keeps what it has of each parameter in the same way: JAX takes
    the state apart and puts it together at every step, which is slow for nested dictionaries.
    """

    step: Int[Array, ""]
    params: FlatParams
    frozen_params: FlatParams
    ema: FlatParams | None
    optimizer: optax.OptState


def flat_params(state: TrainState, *, average: bool = False) -> FlatParams:
    """All parameters of the policy; the moving average of what is trained, if wanted and there."""
    trained = state.ema if average and state.ema is not None else state.params
    return state.frozen_params | trained


def all_params(state: TrainState, *, average: bool = False) -> Params:
    """`flat_params` as the nested dictionaries that checkpoints and policies have."""
    flat = flat_params(state, average=average)
    return unflatten({path: flat[path] for path in sorted(flat)})


def partition(params: Params, trained: frozenset[str]) -> tuple[FlatParams, FlatParams]:
    """Split parameters into (trained, frozen) by dotted path."""
    flat = flatten(params)
    return (
        {path: leaf for path, leaf in flat.items() if path in trained},
        {path: leaf for path, leaf in flat.items() if path not in trained},
    )


def nested_optimizer(state: optax.OptState) -> optax.OptState:
    """An optimizer's state with nested parameters, as checkpoints have it."""
    return _map_params(unflatten, state)


def flat_optimizer(state: optax.OptState) -> optax.OptState:
    """The inverse of `nested_optimizer`."""
    return _map_params(flatten, state)


def _map_params(change: Callable[[dict], dict], state: optax.OptState) -> optax.OptState:
    """Dictionaries in an optimizer's state hold something for each parameter."""
    return jax.tree.map(
        lambda x: change(x) if isinstance(x, dict) else x,
        state,
        is_leaf=lambda x: isinstance(x, dict),
    )


def trained_paths(policy: ImageWAMConfig, frozen: Sequence[str]) -> frozenset[str]:
    """Dotted paths of the parameters that a run trains: all that are read, but for those below
    `frozen` paths.

    With LoRA, the backbone is frozen but for the low-rank additions. ConfigError: a frozen path is
    not one of the policy, or nothing is left to train.
    """
    reads = parameter_reads(policy)
    for part in frozen:
        if not any(_below(path, part) for path in reads):
            raise ConfigError(
                f"train.frozen has {part!r}, which is no part of the policy; its parts are "
                f"{sorted({path.split('.')[0] for path in reads})} and what is below them"
            )
    trained = frozenset(
        path
        for path, is_read in reads.items()
        if is_read
        and not any(_below(path, part) for part in frozen)
        and not (policy.lora.rank and _below(path, "backbone") and ".lora." not in path)
    )
    if not trained:
        raise ConfigError(f"train.frozen {list(frozen)} leaves nothing to train")
    return trained


def cast(params: FlatParams, dtype: jnp.dtype) -> FlatParams:
    """Every array in a dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), params)


def _below(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}.")
