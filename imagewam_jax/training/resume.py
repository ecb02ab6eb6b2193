"""Checkpoints of a training run: save one, and resume from it exactly or not at all."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imagewam_jax.checkpoints.assets import abstract_asset_trees, asset_trees, assets_from_trees
from imagewam_jax.checkpoints.store import Checkpoints
from imagewam_jax.distributed import all_agree, is_first, wait_for_all
from imagewam_jax.errors import CheckpointError, Unreadable
from imagewam_jax.preprocess.inputs import PolicyAssets
from imagewam_jax.storage.objects import AnyPath
from imagewam_jax.training.state import (
    TrainState,
    all_params,
    flat_optimizer,
    nested_optimizer,
    partition,
)

# The fields of a config that may differ when a run is resumed: those that its numbers do not depend
# on. Mesh, accumulation and compiler options change the order of sums, and so the last bits.
RESUMABLE = {
    "mesh": {"data", "fsdp", "tensor", "context", "slices"},
    "train": {
        "accumulate",
        "compiler_options",
        "log_every",
        "validate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "skip_not_finite",
        "initial_weights",
    },
    "data": {
        "directory",
        "index_directory",
        "threads",
        "prefetch",
        "concurrent_reads",
        "bad_frames",
        "not_finite",
    },
    "text": {"weights", "table"},
    "autoencoder": {"weights"},
    "watch": {"profile", "profile_on_signal", "wandb"},
}


# Fields that are newer than some runs, with the values that those had.
NEWER = {"train.max_delay": 0}


class Resumed(NamedTuple):
    """A run as a checkpoint holds it; `data` is the position in the training stream."""

    step: int
    state: TrainState
    assets: PolicyAssets
    metadata: dict[str, Any]
    data: dict[str, Any]


def save(
    checkpoints: Checkpoints,
    step: int,
    state: TrainState,
    assets: PolicyAssets,
    metadata: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Start to write a checkpoint; it is complete after `checkpoints.wait()`."""
    checkpoints.save(step, state_trees(state) | asset_trees(assets), metadata, data)


def state_trees(state: TrainState) -> dict[str, Any]:
    """A state as trees of a checkpoint. Trees of parameters, and of their moving average, hold the
    whole policy, so that each alone is enough to act."""
    trees = {"params": all_params(state), "optimizer": nested_optimizer(state.optimizer)}
    return trees if state.ema is None else trees | {"ema": all_params(state, average=True)}


def resume(
    checkpoints: Checkpoints, abstract: TrainState, config: Mapping[str, Any]
) -> Resumed | None:
    """The newest checkpoint that can be read, or None where there is none.

    `abstract` says what a state of the run is and where it lies. A checkpoint that cannot be read,
    since a disk was full or a file was lost, is reported and set aside, on all hosts if one of them
    cannot read it, once an older one is there to go on from. CheckpointError: they are of another
    config, or none can be read.
    """
    problems: dict[int, str] = {}
    for step in reversed(checkpoints.steps):
        trees, problems[step] = None, "another host cannot read it"
        try:
            trees = _read(checkpoints, step, abstract, config)
        except Unreadable as error:
            problems[step] = str(error)
        if not all_agree(trees is not None):
            continue
        try:
            found = _checked(checkpoints, step, abstract, config, trees)
        except Unreadable as error:  # on all hosts alike
            problems[step] = str(error)
            continue
        del problems[step]
        _set_aside(checkpoints, problems)
        return found
    if problems:
        raise CheckpointError(
            f"{checkpoints.directory}: none of the checkpoints can be read: "
            + "; ".join(problems.values())
        )
    return None


def _set_aside(checkpoints: Checkpoints, problems: Mapping[int, str]) -> None:
    for step, problem in problems.items():
        if is_first():
            where = checkpoints.set_aside(step)
            print(f"the checkpoint of step {step} is not used and was moved to {where}: {problem}")
    if problems:
        wait_for_all("setting unreadable checkpoints aside")
        checkpoints.reload()


def restore(
    checkpoints: Checkpoints, step: int, abstract: TrainState, config: Mapping[str, Any]
) -> Resumed:
    """A checkpoint of a run with this config, where `abstract` says that its state lies.

    CheckpointError: it is of another config. Unreadable: it cannot be read.
    """
    trees = _read(checkpoints, step, abstract, config)
    return _checked(checkpoints, step, abstract, config, trees)


def _read(
    checkpoints: Checkpoints, step: int, abstract: TrainState, config: Mapping[str, Any]
) -> dict[str, Any]:
    """All trees, as far as this process holds them, read without waiting for other processes."""
    metadata = checkpoints.restore_json(step, "metadata")
    check_same(metadata["config"], config, checkpoints.directory.parent)
    try:
        checkpoints.restore_json(step, "data")  # that they can be read
        checkpoints.checksums(step)
        assets = abstract_asset_trees(checkpoints, step, config["autoencoder"])
        return checkpoints.read(step, state_trees(abstract) | assets)
    except CheckpointError as error:  # of the same config, so that it can only be damaged
        raise Unreadable(str(error)) from error


def _checked(
    checkpoints: Checkpoints,
    step: int,
    abstract: TrainState,
    config: Mapping[str, Any],
    trees: Mapping[str, Any],
) -> Resumed:
    """A run from the trees of a checkpoint, after their checksums: all processes call this."""
    checkpoints.check(step, trees)
    trained = frozenset(abstract.params)
    params, frozen_params = partition(trees["params"], trained)
    ema = partition(trees["ema"], trained)[0] if "ema" in trees else None
    number = jax.device_put(jnp.asarray(step, jnp.int32), abstract.step.sharding)
    optimizer = flat_optimizer(trees["optimizer"])
    return Resumed(
        step,
        TrainState(number, params, frozen_params, ema, optimizer),
        assets_from_trees(trees, config["autoencoder"]),
        # From now on the config is the one that the run was resumed with.
        checkpoints.restore_json(step, "metadata") | {"config": dict(config)},
        checkpoints.restore_json(step, "data"),
    )


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], where: AnyPath) -> None:
    """CheckpointError, naming the fields, if the run's numbers would not be what they were."""
    saved, now = ({**NEWER, **_unchangeable(config)} for config in (saved, now))
    changed = [k for k in sorted({*saved, *now}) if saved.get(k) != now.get(k)]
    if changed:
        details = "; ".join(f"{k}: {saved.get(k)!r} -> {now.get(k)!r}" for k in changed)
        raise CheckpointError(f"{where}: the checkpoint is of another config ({details})")


def _unchangeable(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _unchangeable(value, f"{prefix}{key}.")
        elif key not in RESUMABLE.get(prefix.rstrip("."), ()):
            flat[prefix + key] = value
    return flat
