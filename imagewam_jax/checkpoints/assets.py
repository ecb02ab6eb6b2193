"""The assets of a policy in a checkpoint: autoencoder, text features, normalizers."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from flax import nnx

from imagewam_jax.checkpoints.store import Checkpoints, check_arrays, open_checkpoint
from imagewam_jax.config.schema import named_config
from imagewam_jax.errors import CheckpointError
from imagewam_jax.models.autoencoders import AUTOENCODERS
from imagewam_jax.models.parameters import module_builder, module_tree
from imagewam_jax.preprocess.inputs import PolicyAssets
from imagewam_jax.preprocess.normalization import Normalizer
from imagewam_jax.storage.objects import AnyPath


def asset_trees(assets: PolicyAssets) -> dict[str, dict[str, Any]]:
    """The arrays of the assets, as the trees of a checkpoint that `ASSET_TREES` names."""
    return {
        "autoencoder": module_tree(assets.autoencoder),
        "text": {"features": assets.text, "length": assets.text_length},
        "normalizers": normalizer_tree(assets.actions, assets.state),
    }


def normalizer_tree(actions: Normalizer, state: Normalizer) -> dict[str, Any]:
    """The tree of both normalizers; of a policy without a robot state it has only the first, since
    Orbax cannot save arrays without numbers."""
    both = {"actions": actions, "state": state}
    return {name: dataclasses.asdict(n) for name, n in both.items() if n.scale.size}


ASSET_TREES = ("autoencoder", "text", "normalizers")


def assets_from_trees(
    trees: Mapping[str, Mapping[str, Any]], autoencoder: Mapping[str, Any]
) -> PolicyAssets:
    """The inverse of `asset_trees`; `autoencoder` is that section of the config."""
    normalizers = {name: Normalizer(**tree) for name, tree in trees["normalizers"].items()}
    actions = normalizers["actions"]
    without_state = Normalizer(actions.scale[:, :0], actions.center[:, :0])
    return PolicyAssets(
        autoencoder=autoencoder_from_tree(trees["autoencoder"], autoencoder),
        text=trees["text"]["features"],
        text_length=trees["text"]["length"],
        actions=actions,
        state=normalizers.get("state", without_state),
    )


def restore_assets(
    checkpoints: Checkpoints,
    step: int,
    autoencoder: Mapping[str, Any],
    instead: Mapping[str, Any] = MappingProxyType({}),
) -> PolicyAssets:
    """Restore the assets of a checkpoint; `autoencoder` is that section of its config, and trees in
    `instead` replace those of the checkpoint."""
    names = [name for name in ASSET_TREES if name not in instead]
    abstract = abstract_asset_trees(checkpoints, step, autoencoder, names)
    return assets_from_trees({**checkpoints.restore(step, abstract), **instead}, autoencoder)


def abstract_asset_trees(
    checkpoints: Checkpoints,
    step: int,
    autoencoder: Mapping[str, Any],
    names: Sequence[str] = ASSET_TREES,
) -> dict[str, Any]:
    """Shapes and dtypes of these trees, for the autoencoder from its config section and for the
    others from the checkpoint.

    CheckpointError: a tree is missing. Unreadable: its description is damaged.
    """
    abstract = {name: checkpoints.abstract(step, name) for name in names}
    if "autoencoder" in abstract:
        abstract["autoencoder"] = abstract_autoencoder(autoencoder)
    return abstract


def read_autoencoder(path: AnyPath | str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Read the autoencoder's tree from a checkpoint, in float32.

    CheckpointError: there is none, or it is not the one of the config's section.
    """
    tree = {"autoencoder": check_autoencoder(path, section)}
    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        return checkpoints.restore(step, tree)["autoencoder"]


def check_autoencoder(path: AnyPath | str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes of the autoencoder of a config's section, which a checkpoint has.

    CheckpointError: there is none, or it is not the one of the section.
    """
    wanted = abstract_autoencoder(section)
    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        if "autoencoder" in checkpoints.trees(step):
            saved = checkpoints.restore_json(step, "metadata")["config"]["autoencoder"]
            if autoencoder_config(saved) != autoencoder_config(section):
                raise CheckpointError(
                    f"{path}: its autoencoder is {autoencoder_config(saved)}, the config asks for "
                    f"{autoencoder_config(section)}"
                )
        saved = checkpoints.abstract(step, "autoencoder")
        check_arrays(wanted, saved, f"{path}: autoencoder")
    return wanted


def autoencoder_from_tree(tree: Mapping[str, Any], section: Mapping[str, Any]) -> nnx.Module:
    """The autoencoder of a config's section, with these parameters."""
    return module_builder(lambda: new_autoencoder(section))(tree)


def abstract_autoencoder(section: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes of the autoencoder's parameters."""
    return jax.eval_shape(lambda: module_tree(new_autoencoder(section)))


def new_autoencoder(section: Mapping[str, Any]) -> nnx.Module:
    """The autoencoder that a config names, with random weights."""
    config = autoencoder_config(section)
    return AUTOENCODERS[section["name"]][1](config, rngs=nnx.Rngs(0))


def autoencoder_config(section: Mapping[str, Any]) -> Any:
    """The sizes that a config's autoencoder section gives."""
    sizes = {key: value for key, value in section.items() if key != "weights"}
    return named_config(sizes, AUTOENCODERS, "autoencoder")
