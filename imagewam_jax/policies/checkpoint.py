"""What a checkpoint holds, and how it is written and read.

    <directory>/<step>/params, ema, optimizer   trees of arrays
                       frozen                   autoencoder, text features, normalisers
                       data                     position of the data iterator
                       about                    config, prompts, statistics: how to rebuild it

A step is complete or absent: Orbax writes it under another name and renames it. `about` is
JSON; everything that acting needs is in one step's folder.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from imagewam_jax.policies.errors import CheckpointError
from imagewam_jax.policies.frozen import Frozen, abstract_frozen_tree, frozen_from_tree

FORMAT = 1
TREES = ("params", "ema", "optimizer", "frozen")


class Checkpoints:
    """The checkpoints of one run, written in the background."""

    def __init__(self, directory: Path | str, *, keep: int = 2):
        self.directory = Path(directory).absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        try:
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        except OSError as error:
            raise CheckpointError(f"{self.directory}: {error}") from error

    @property
    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(
        self, step: int, trees: Mapping[str, Any], data: Mapping[str, Any], about: Mapping[str, Any]
    ) -> None:
        """Starts to write `trees` (one for each of `TREES`); returns before it is done.

        CheckpointError: there is less free space than it takes, or the one before could not be
        written.
        """
        self.wait()
        check_space(self.directory, tree_bytes(trees))
        items = {name: ocp.args.StandardSave(trees[name]) for name in TREES}
        items |= {
            "data": ocp.args.JsonSave(dict(data)),
            "about": ocp.args.JsonSave({"format": FORMAT, **about}),
        }
        self._manager.save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Until everything is on disk. CheckpointError: it could not be written."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{self.directory}: a checkpoint could not be written, the newest complete one is "
                f"of step {self.latest_step}: {error}"
            ) from error

    def restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """The named trees of a step, in the shapes, dtypes and shardings of `abstract`.

        Where it has no sharding, an array goes to the first device, whatever it was saved from.
        """
        here = SingleDeviceSharding(jax.devices()[0])
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here), abstract
        )
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
        return dict(self._manager.restore(step, args=ocp.args.Composite(**items)))

    def restore_frozen(self, step: int, about: Mapping[str, Any]) -> Frozen:
        """The frozen parts of a step, of which `about` says what they are."""
        config = about["config"]
        action_dim, state_dim = config["model"]["expert"]["action_dim"], about["state_dim"]
        abstract = abstract_frozen_tree(
            config["autoencoder"], tuple(about["text_shape"]), action_dim, state_dim
        )
        tree = self.restore(step, {"frozen": abstract})["frozen"]
        return frozen_from_tree(tree, config["autoencoder"])

    def restore_json(self, step: int, name: str) -> dict[str, Any]:
        """`data` or `about` of a step."""
        items = ocp.args.Composite(**{name: ocp.args.JsonRestore()})
        return self._manager.restore(step, args=items)[name]

    def close(self) -> None:
        self._manager.close()


def open_checkpoint(path: Path | str) -> tuple[Checkpoints, int]:
    """The run and step that a path means: a run's folder, its `checkpoints`, or one step.

    CheckpointError: there is no checkpoint.
    """
    path = Path(path).absolute()
    step = None
    if path.name.isdigit():
        path, step = path.parent, int(path.name)
    elif (path / "checkpoints").is_dir():
        path = path / "checkpoints"
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such directory, expected a run or a checkpoint in it")
    steps = sorted(int(p.name) for p in path.iterdir() if p.name.isdigit())
    if not steps or (step is not None and step not in steps):
        wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
        raise CheckpointError(f"{path}: no {wanted}; it has {steps}")
    checkpoints = Checkpoints(path, keep=None)
    chosen = steps[-1] if step is None else step
    try:
        found = checkpoints.restore_json(chosen, "about").get("format")
    except (KeyError, OSError) as error:
        raise CheckpointError(f"{path / str(chosen)}: not a checkpoint: {error}") from error
    if found != FORMAT:
        raise CheckpointError(f"{path}: checkpoint format {found}, this version reads {FORMAT}")
    return checkpoints, chosen


def tree_bytes(tree: Any) -> int:
    """Size of all arrays of a tree, concrete or abstract."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def check_space(directory: Path, needed: int, copies: int = 1) -> None:
    """CheckpointError unless `copies` checkpoints of `needed` bytes fit beside what is there."""
    existing = next(p for p in (directory, *directory.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < copies * needed:
        raise CheckpointError(
            f"{directory}: {copies} checkpoint(s) of {needed / 1e6:.0f} MB do not fit: "
            f"{free / 1e6:.0f} MB are free"
        )
