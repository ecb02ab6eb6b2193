"""Goes on from a checkpoint: as if nothing had happened, or not at all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imagewam_jax.checkpoints.assets import abstract_asset_trees, asset_trees, assets_from_trees
from imagewam_jax.checkpoints.store import Checkpoints
from imagewam_jax.errors import CheckpointError, Unreadable
from imagewam_jax.models.parameters import flatten
from imagewam_jax.preprocess.inputs import PolicyAssets
from imagewam_jax.training.distributed import all_agree, is_first, wait_for_all
from imagewam_jax.training.sharding import with_shardings
from imagewam_jax.training.state import TrainState, all_params, partition
from imagewam_jax.training.step import Trainer

# What a run may change about itself when it resumes: nothing that its numbers depend on. A mesh,
# parts of a batch and the compiler's options change the order of sums, and with it last bits.
RESUMABLE = {
    "mesh": {"data", "fsdp", "tensor", "context", "slices"},
    "train": {
        "accumulate",
        "compiler_options",
        "log_every",
        "validate_every",
        "checkpoint_every",
        "keep_checkpoints",
        "initial_weights",
    },
    "data": {"directory", "index_directory", "threads", "prefetch", "bad_frames"},
    "text": {"weights", "table"},
    "autoencoder": {"weights"},
    "watch": {"profile", "profile_on_signal", "wandb"},
}


class Resumed(NamedTuple):
    """What a checkpoint holds of a run; `data` is the position in its stream."""

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
    """Starts to write a checkpoint."""
    checkpoints.save(step, state_trees(state) | asset_trees(assets), metadata, data)


def state_trees(state: TrainState) -> dict[str, Any]:
    """The trees of a checkpoint that change. Those of parameters are of a whole policy each, so
    that each alone is enough to act."""
    trees = {"params": all_params(state), "optimizer": state.optimizer}
    return trees if state.ema is None else trees | {"ema": all_params(state, average=True)}


def abstract_state(trainer: Trainer) -> TrainState:
    """Shapes, dtypes and shardings of a state."""
    return with_shardings(jax.eval_shape(trainer.init, 0, {}), trainer.shardings)


def resume(checkpoints: Checkpoints, trainer: Trainer, config: Mapping[str, Any]) -> Resumed | None:
    """The newest checkpoint that can be read, or None where there is none.

    One that cannot, since a disk was full or a file was lost, is reported and set aside, on all
    hosts if one of them cannot read it, once an older one is there to go on from. CheckpointError:
    they are of another config, or none can be read.
    """
    problems: dict[int, str] = {}
    for step in reversed(checkpoints.steps):
        trees, problems[step] = None, "another host cannot read it"
        try:
            trees = _read(checkpoints, step, trainer, config)
        except Unreadable as error:
            problems[step] = str(error)
        if not all_agree(trees is not None):
            continue
        try:
            found = _checked(checkpoints, step, trainer, config, trees)
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
    checkpoints: Checkpoints, step: int, trainer: Trainer, config: Mapping[str, Any]
) -> Resumed:
    """A checkpoint of a run with this config, on the devices of the trainer's mesh.

    CheckpointError: it is of another config. Unreadable: it cannot be read.
    """
    trees = _read(checkpoints, step, trainer, config)
    return _checked(checkpoints, step, trainer, config, trees)


def _read(
    checkpoints: Checkpoints, step: int, trainer: Trainer, config: Mapping[str, Any]
) -> dict[str, Any]:
    """All trees, as far as this process holds them; it waits for no other."""
    metadata = checkpoints.restore_json(step, "metadata")
    check_same(metadata["config"], config, checkpoints.directory.parent)
    try:
        checkpoints.restore_json(step, "data")  # that they can be read
        checkpoints.checksums(step)
        assets = abstract_asset_trees(checkpoints, step, config["autoencoder"])
        return checkpoints.read(step, state_trees(abstract_state(trainer)) | assets)
    except CheckpointError as error:  # of the same config, so that it can only be damaged
        raise Unreadable(str(error)) from error


def _checked(
    checkpoints: Checkpoints,
    step: int,
    trainer: Trainer,
    config: Mapping[str, Any],
    trees: Mapping[str, Any],
) -> Resumed:
    """Of trees that all processes have read."""
    checkpoints.check(step, trees)
    trained = frozenset(flatten(trainer.shardings.params))
    params, frozen_params = partition(trees["params"], trained)
    ema = partition(trees["ema"], trained)[0] if "ema" in trees else None
    number = jax.device_put(jnp.asarray(step, jnp.int32), trainer.shardings.step)
    return Resumed(
        step,
        TrainState(number, params, frozen_params, ema, trees["optimizer"]),
        assets_from_trees(trees, config["autoencoder"]),
        # What a run may change about itself is from now on as it says.
        checkpoints.restore_json(step, "metadata") | {"config": dict(config)},
        checkpoints.restore_json(step, "data"),
    )


def check_same(saved: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """CheckpointError, naming each field, unless a run's numbers stay what they were."""
    saved, now = _unchangeable(saved), _unchangeable(now)
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
