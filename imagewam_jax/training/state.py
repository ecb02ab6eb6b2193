"""What changes during training, and what of the policy does not."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from imagewam_jax.errors import ConfigError
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import Params, abstract_params, flatten, unflatten


class TrainState(NamedTuple):
    """A run between two steps.

    params are trained and float32, fixed are not and of the dtype that the run computes in: two
    trees that share no leaf. ema is the moving average of `params`, None where there is none.
    """

    step: Int[Array, ""]
    params: Params
    frozen_params: Params
    ema: Params | None
    optimizer: optax.OptState


def all_params(state: TrainState, *, average: bool = False) -> Params:
    """All parameters; of those that are trained the moving average, if wanted and there is one."""
    trained = state.ema if average and state.ema is not None else state.params
    return merge(state.frozen_params, trained)


def merge(*trees: Params) -> Params:
    """One tree of several that share no leaf; in the order of names, as Flax has it."""
    flat = {path: leaf for tree in trees for path, leaf in flatten(tree).items()}
    return unflatten({path: flat[path] for path in sorted(flat)})


def partition(params: Params, trained: frozenset[str]) -> tuple[Params, Params]:
    """Those of these dotted paths, and the others."""
    flat = flatten(params)
    return (
        unflatten({path: leaf for path, leaf in flat.items() if path in trained}),
        unflatten({path: leaf for path, leaf in flat.items() if path not in trained}),
    )


def trained_paths(policy: ImageWAMConfig, frozen: Sequence[str]) -> frozenset[str]:
    """Dotted paths of the parameters that a run trains.

    `frozen` are parts that it does not; with LoRA, the backbone is frozen but for its additions.
    ConfigError: a part is not one of the policy, or nothing is left.
    """
    paths = flatten(abstract_params(policy)).keys()
    for part in frozen:
        if not any(_below(path, part) for path in paths):
            raise ConfigError(
                f"train.frozen has {part!r}, which is no part of the policy; its parts are "
                f"{sorted({path.split('.')[0] for path in paths})} and what is below them"
            )
    trained = frozenset(
        path
        for path in paths
        if not any(_below(path, part) for part in frozen)
        and not (policy.lora.rank and _below(path, "backbone") and ".lora." not in path)
    )
    if not trained:
        raise ConfigError(f"train.frozen {list(frozen)} leaves nothing to train")
    return trained


def cast(tree: Mapping[str, Any], dtype: jnp.dtype) -> Params:
    """Every array in a dtype."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def _below(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}.")
