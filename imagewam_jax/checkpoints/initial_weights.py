"""Parameters that training starts from: those of a checkpoint, and random ones for the rest."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.config.schema import named_config
from imagewam_jax.errors import CheckpointError
from imagewam_jax.models.backbones import BACKBONES
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import Params, abstract_params, flatten, unflatten

# What a checkpoint may lack, each as a whole: the rest of a policy is of no use half random.
# Low-rank additions are in many places and count as one part.
FRESH = ("expert", "expert.action_in", "expert.head", "proprio_in", "lora")


# What changes the numbers of a policy and is in none of its arrays.
_UNSEEN = ("coordinate_dtype", "proprio_position")


class Initial(NamedTuple):
    """Some of a policy's parameters, in float32; which parts have none; in what the policy that
    they are of differs; and whose they are."""

    params: Params
    random: tuple[str, ...]
    differences: tuple[str, ...]
    provenance: dict[str, Any]


def initial_weights(
    path: Path | str, policy: ImageWAMConfig, abstract: Params | None = None
) -> Initial:
    """The parameters of a checkpoint for a policy, laid out as `abstract` says, if it is given.

    Those of a training run are its moving average. CheckpointError: an array of it is not one of
    the policy's, it is of another backbone, or it lacks more than `FRESH`.
    """
    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        metadata = checkpoints.restore_json(step, "metadata")
        tree = checkpoints.weights(step)
        wanted = flatten(abstract or abstract_params(policy))
        saved = flatten(checkpoints.abstract(step, tree))
        differences = _differences(metadata["config"], policy, path)
        random = _random(saved, wanted, path)
        chosen = unflatten({name: wanted[name] for name in saved})
        params = checkpoints.restore(step, {tree: chosen})[tree]
    provenance = {"step": step, **metadata.get("provenance", {})}
    return Initial(params, random, differences, provenance)


def _differences(
    config: Mapping[str, Any], policy: ImageWAMConfig, path: Path | str
) -> tuple[str, ...]:
    model = config.get("model", {})
    if "backbone" in model:
        backbone = named_config(model["backbone"], BACKBONES, f"{path}: model.backbone")
        if backbone != policy.backbone:
            raise CheckpointError(f"{path}: of {backbone}, the config asks for {policy.backbone}")
    unseen = {name: (model.get(name), getattr(policy, name)) for name in _UNSEEN if name in model}
    lora = model.get("lora", {})
    if lora.get("rank") and policy.lora.rank:
        unseen["lora.alpha"] = lora["alpha"], policy.lora.alpha
    return tuple(
        f"{name} was {then!r}, is {now!r}" for name, (then, now) in unseen.items() if then != now
    )


def _random(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], path: Path | str
) -> tuple[str, ...]:
    """The parts that the checkpoint does not have."""
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
    present = {name.split(".")[0] for name in wanted}  # a policy without a robot state has no part
    present |= {"lora"} if any(_in(name, "lora") for name in wanted) else set()
    return tuple(part for part in random if part.split(".")[0] in present)


def overlay(params: Params, over: Mapping[str, Any]) -> Params:
    """`params`, with those arrays of `over` that are there."""
    return unflatten(flatten(params) | flatten(over))


def _in(name: str, part: str) -> bool:
    return f".{part}." in name if part == "lora" else name.startswith(f"{part}.")
