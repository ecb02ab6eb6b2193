"""Parameters that training starts from: those of a checkpoint, and random ones for the rest."""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.config.schema import named_config
from imagewam_jax.errors import CheckpointError
from imagewam_jax.models.backbones import BACKBONES
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import Params, abstract_params, flatten, unflatten
from imagewam_jax.storage.objects import AnyPath

# The groups of parameters that a checkpoint may lack, each as a whole; they then start at random.
# LoRA factors are in many places and count as one group.
FRESH = ("expert", "expert.action_in", "expert.head", "proprio_in", "lora")
# Fields of a policy's config that change its numbers and show in none of its arrays.
_UNSEEN = ("coordinate_dtype", "proprio_position")


class Initial(NamedTuple):
    """Parameters of a policy, in float32, that come from a checkpoint.

    random: the groups of `FRESH` that it lacks.
    differences: in what the policy that it was made for differs, in words.
    provenance: its step, and where it comes from.
    """

    params: Params
    random: tuple[str, ...]
    differences: tuple[str, ...]
    provenance: dict[str, Any]


class Found(NamedTuple):
    """Parameters that a checkpoint has for a policy, as shapes. `tree` is the name of their tree in
    it; the other fields are those of `Initial`."""

    tree: str
    params: Params
    random: tuple[str, ...]
    differences: tuple[str, ...]
    provenance: dict[str, Any]


def initial_weights(
    path: AnyPath | str, policy: ImageWAMConfig, abstract: Params | None = None
) -> Initial:
    """Read the parameters of a checkpoint for a policy, with the shardings of `abstract` if given.

    From a training run it takes the moving average. CheckpointError: an array is not one of the
    policy's, the backbone is another one, or more than `FRESH` is missing.
    """
    found = find_initial_weights(path, policy, abstract)
    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        params = checkpoints.restore(step, {found.tree: found.params})[found.tree]
    return Initial(params, *found[2:])


def find_initial_weights(
    path: AnyPath | str, policy: ImageWAMConfig, abstract: Params | None = None
) -> Found:
    """What `initial_weights` would read, with the same errors; no array is read."""
    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        metadata = checkpoints.restore_json(step, "metadata")
        tree = checkpoints.weights(step)
        wanted = flatten(abstract or abstract_params(policy))
        saved = flatten(checkpoints.abstract(step, tree))
    differences = _differences(metadata["config"], policy, path)
    random = _random(saved, wanted, path)
    chosen = unflatten({name: wanted[name] for name in saved})
    provenance = {"step": step, **metadata.get("provenance", {})}
    return Found(tree, chosen, random, differences, provenance)


def _differences(
    config: Mapping[str, Any], policy: ImageWAMConfig, path: AnyPath | str
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
    saved: Mapping[str, Any], wanted: Mapping[str, Any], path: AnyPath | str
) -> tuple[str, ...]:
    """The groups of `FRESH` that the checkpoint lacks and the policy has."""
    for name, leaf in saved.items():
        found = tuple(wanted[name].shape) if name in wanted else None
        if found != leaf.shape:
            raise CheckpointError(
                f"{path}: {name} is {leaf.shape}, the config's policy has "
                f"{'none' if found is None else found}"
            )
    missing = wanted.keys() - saved.keys()
    random = [group for group in FRESH if all(n in missing for n in wanted if _in(n, group))]
    lost = sorted(name for name in missing if not any(_in(name, group) for group in random))
    if lost:
        raise CheckpointError(f"{path}: lacks {len(lost)} arrays of the policy, such as {lost[0]}")
    present = {name.split(".")[0] for name in wanted}  # a policy can lack the robot state
    present |= {"lora"} if any(_in(name, "lora") for name in wanted) else set()
    return tuple(group for group in random if group.split(".")[0] in present)


def overlay(params: Params, over: Mapping[str, Any]) -> Params:
    """`params`, with the arrays of `over` in place of those with the same path."""
    return unflatten(flatten(params) | flatten(over))


def _in(name: str, group: str) -> bool:
    return f".{group}." in name if group == "lora" else name.startswith(f"{group}.")
