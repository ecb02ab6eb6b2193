"""Parameters that training starts from: those of a checkpoint, and random ones for the rest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imagewam_jax.conversion.mapping import flatten, unflatten
from imagewam_jax.policies.checkpoint import open_checkpoint
from imagewam_jax.policies.errors import CheckpointError
from imagewam_jax.policies.parameters import Params

# What a checkpoint may lack, each as a whole: the rest of a policy is of no use half random.
FRESH = ("expert", "expert.action_in", "expert.head", "proprio_in")


class Initial(NamedTuple):
    """Some of a policy's parameters, in float32; which parts have none; and whose they are."""

    params: Params
    random: tuple[str, ...]
    provenance: dict[str, Any]


def initial_weights(path: Path | str, abstract: Mapping[str, Any]) -> Initial:
    """The parameters of a checkpoint for a policy of these shapes.

    Those of a training run are its moving average. CheckpointError: an array of it is not one of
    the policy's, or it lacks more than `FRESH`.
    """
    checkpoints, step = open_checkpoint(path)
    tree = "ema" if "ema" in checkpoints.trees(step) else "params"
    wanted, saved = flatten(abstract), flatten(checkpoints.abstract(step, tree))
    for name, leaf in saved.items():
        found = tuple(wanted[name].shape) if name in wanted else None
        if found != leaf.shape:
            raise CheckpointError(
                f"{path}: {name} is {leaf.shape}, the config's policy has "
                f"{'none' if found is None else found}"
            )
    missing = wanted.keys() - saved.keys()
    random = [part for part in FRESH if all(n in missing for n in wanted if _in(n, part))]
    lost = sorted(name for name in missing if not any(_in(name, part) for part in random))
    if lost:
        raise CheckpointError(f"{path}: lacks {len(lost)} arrays of the policy, such as {lost[0]}")
    chosen = unflatten({name: wanted[name] for name in saved})
    params = checkpoints.restore(step, {tree: chosen})[tree]
    about = checkpoints.restore_json(step, "about")
    checkpoints.close()
    return Initial(params, tuple(random), {"step": step, **about.get("provenance", {})})


def overlay(params: Params, over: Mapping[str, Any]) -> Params:
    """`params`, with those arrays of `over` that are there."""
    return unflatten(flatten(params) | flatten(over))


def _in(name: str, part: str) -> bool:
    return name.startswith(f"{part}.")
