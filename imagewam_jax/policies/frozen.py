"""What a policy needs besides its parameters, and how it turns raw data into model inputs.

Images become latents, instructions become features, states and actions are normalised. All of
it runs inside jit, the same way for training and for acting.
"""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from imagewam_jax.data.device import mosaic, to_model_range
from imagewam_jax.data.normalization import Normalizer, zero_missing_dims
from imagewam_jax.models.autoencoders import AUTOENCODERS
from imagewam_jax.models.imagewam import Context, Sample
from imagewam_jax.policies.checkpoint import Checkpoints, open_checkpoint
from imagewam_jax.policies.config import named_config
from imagewam_jax.policies.errors import CheckpointError
from imagewam_jax.policies.parameters import module_tree

REFERENCES = "references"  # the layout in which each camera is a reference image of its own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Fixed during training, and part of every checkpoint.

    text, text_length: features of the known prompts, cut to one bucket; padding is behind the
    valid tokens. actions, state: from real units to those of the model, and back.
    """

    autoencoder: nnx.Module
    text: Float[Array, "prompts tokens text_dim"]
    text_length: Int[Array, " prompts"]
    actions: Normalizer
    state: Normalizer


def encode_images(
    frozen: Frozen, layout: str, images_bmkhwc: UInt8[Array, "b moment camera h w 3"]
) -> Float[Array, "b moment reference rows columns channels"]:
    """Latents of the cameras at some moments: of one mosaic, or of each camera."""
    batch, moments, cameras = images_bmkhwc.shape[:3]
    if layout == REFERENCES:
        images = images_bmkhwc
    else:
        images = mosaic(layout, [images_bmkhwc[:, :, k] for k in range(cameras)])[:, :, None]
    flat = to_model_range(images).reshape(-1, *images.shape[3:])
    latents = frozen.autoencoder.encode(flat)
    return latents.reshape(batch, moments, -1, *latents.shape[1:])


def make_context(
    frozen: Frozen,
    references: Float[Array, "b reference rows columns channels"],
    text_id: Int[Array, " b"],
    state: Float[Array, "b p"],
) -> Context:
    """What the policy decides on. `text_id` is a row of `frozen.text`; `state` in real units."""
    return Context(
        text=frozen.text[text_id],
        text_length=frozen.text_length[text_id],
        references=references,
        proprio=frozen.state.normalize(state),
    )


def make_sample(frozen: Frozen, layout: str, batch: Mapping[str, Array]) -> Sample:
    """A training sample from a batch of the loader. The target is the first camera's future,
    or that of the whole mosaic."""
    latents = encode_images(frozen, layout, batch["images"].swapaxes(1, 2))
    action_dim_is_pad = ~batch["action_dim_mask"]
    return Sample(
        context=make_context(frozen, latents[:, 0], batch["text_id"], batch["proprio"]),
        target=latents[:, 1, 0],
        actions=zero_missing_dims(
            frozen.actions.normalize(batch["actions"]), action_dim_is_pad[:, None]
        ),
        action_is_pad=batch["action_is_pad"],
        action_dim_is_pad=action_dim_is_pad,
    )


def frozen_trees(frozen: Frozen) -> dict[str, dict[str, Any]]:
    """The arrays as nested dictionaries: the trees of a checkpoint that `FROZEN_TREES` names."""
    return {
        "autoencoder": module_tree(frozen.autoencoder),
        "text": {"features": frozen.text, "length": frozen.text_length},
        "normalizers": {
            "actions": dataclasses.asdict(frozen.actions),
            "state": dataclasses.asdict(frozen.state),
        },
    }


FROZEN_TREES = ("autoencoder", "text", "normalizers")


def frozen_from_trees(
    trees: Mapping[str, Mapping[str, Any]], autoencoder: Mapping[str, Any]
) -> Frozen:
    """The inverse; `autoencoder` is that section of the config."""
    return Frozen(
        autoencoder=autoencoder_from_tree(trees["autoencoder"], autoencoder),
        text=trees["text"]["features"],
        text_length=trees["text"]["length"],
        actions=Normalizer(**trees["normalizers"]["actions"]),
        state=Normalizer(**trees["normalizers"]["state"]),
    )


def restore_frozen(
    checkpoints: Checkpoints,
    step: int,
    autoencoder: Mapping[str, Any],
    instead: Mapping[str, Any] = MappingProxyType({}),
) -> Frozen:
    """The frozen parts of a checkpoint; `autoencoder` is that section of its config, and `instead`
    has trees that are taken in place of its own."""
    names = [name for name in FROZEN_TREES if name not in instead]
    abstract = {name: checkpoints.abstract(step, name) for name in names}
    if "autoencoder" in abstract:
        abstract["autoencoder"] = abstract_autoencoder(autoencoder)
    return frozen_from_trees({**checkpoints.restore(step, abstract), **instead}, autoencoder)


def read_autoencoder(path: Path | str, section: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of the autoencoder in some checkpoint, in float32.

    CheckpointError: there is none, or not the one of the config's section.
    """
    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        tree = {"autoencoder": abstract_autoencoder(section)}
        if "autoencoder" in checkpoints.trees(step):
            saved = checkpoints.restore_json(step, "about")["config"]["autoencoder"]
            if autoencoder_config(saved) != autoencoder_config(section):
                raise CheckpointError(
                    f"{path}: its autoencoder is {autoencoder_config(saved)}, the config asks for "
                    f"{autoencoder_config(section)}"
                )
        return checkpoints.restore(step, tree)["autoencoder"]


def autoencoder_from_tree(tree: Mapping[str, Any], section: Mapping[str, Any]) -> nnx.Module:
    """The autoencoder of a config's section, with these parameters."""
    graph, state = nnx.split(jax.eval_shape(lambda: new_autoencoder(section)))
    nnx.replace_by_pure_dict(state, tree)
    return nnx.merge(graph, state)


def abstract_autoencoder(section: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes of its parameters."""
    return jax.eval_shape(lambda: module_tree(new_autoencoder(section)))


def new_autoencoder(section: Mapping[str, Any]) -> nnx.Module:
    """The autoencoder that a config names, with random weights."""
    config = autoencoder_config(section)
    return AUTOENCODERS[section["name"]][1](config, rngs=nnx.Rngs(0))


def autoencoder_config(section: Mapping[str, Any]) -> Any:
    """The sizes in that section of a config."""
    sizes = {key: value for key, value in section.items() if key != "weights"}
    return named_config(sizes, AUTOENCODERS, "autoencoder")
