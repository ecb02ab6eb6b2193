"""What a policy needs besides its parameters, and how it turns raw data into model inputs.

Images become latents, instructions become features, states and actions are normalised. All of
it runs inside jit, the same way for training and for acting.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from imagewam_jax.data.device import REFERENCES, ImageSpec, prepare_images
from imagewam_jax.data.errors import DataError
from imagewam_jax.data.normalization import Normalizer, zero_missing_dims
from imagewam_jax.models.autoencoders import AUTOENCODERS
from imagewam_jax.models.imagewam import Context, Sample
from imagewam_jax.policies.checkpoint import Checkpoints, open_checkpoint
from imagewam_jax.policies.config import named_config
from imagewam_jax.policies.errors import CheckpointError
from imagewam_jax.policies.parameters import module_tree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Frozen:
    """Fixed during training, and part of every checkpoint.

    text, text_length: features of the known prompts, cut to one bucket; padding is behind the
    valid tokens. actions, state: from real units to those of the model, and back, with a row for
    each dataset.
    """

    autoencoder: nnx.Module
    text: Float[Array, "prompts tokens text_dim"]
    text_length: Int[Array, " prompts"]
    actions: Normalizer
    state: Normalizer


def image_spec(data: Mapping[str, Any]) -> ImageSpec:
    """How images become those that the model sees, of the `data` section of a config.
    DataError: it cannot be done."""
    unknown = sorted(set(data["letterbox"]) - set(data["cameras"]))
    if unknown:
        raise DataError(f"data.letterbox has {unknown}, data.cameras are {list(data['cameras'])}")
    letterbox = tuple(n for n, role in enumerate(data["cameras"]) if role in data["letterbox"])
    return ImageSpec(data["layout"], tuple(data["image_size"]), data["augmentation"], letterbox)


def encode_images(
    frozen: Frozen,
    spec: ImageSpec,
    images: UInt8[Array, "b camera moment h w 3"],
    sizes: Int[Array, "b camera 2"] | None = None,
    seeds: UInt32[Array, " b"] | None = None,
) -> Float[Array, "b moment reference rows columns channels"]:
    """Latents of the cameras at some moments: of one mosaic, or of each camera.

    sizes, seeds: see `data.device.prepare_images`.
    """
    prepared = prepare_images(images, sizes, spec, seeds)
    if spec.layout != REFERENCES:
        prepared = prepared[:, :, None]
    latents = frozen.autoencoder.encode(prepared.reshape(-1, *prepared.shape[3:]))
    return latents.reshape(*prepared.shape[:3], *latents.shape[1:])


def make_context(
    frozen: Frozen,
    references: Float[Array, "b reference rows columns channels"],
    text_id: Int[Array, " b"],
    state: Float[Array, "b p"],
    norm_id: Int[Array, "*b"],
) -> Context:
    """What the policy decides on. `text_id` is a row of `frozen.text`; `state` in the units of the
    dataset that `norm_id` numbers."""
    return Context(
        text=frozen.text[text_id],
        text_length=frozen.text_length[text_id],
        references=references,
        proprio=frozen.state.of(norm_id).normalize(state),
    )


def make_sample(
    frozen: Frozen,
    spec: ImageSpec,
    batch: Mapping[str, Array],
    *,
    augment: bool = False,
) -> Sample:
    """A training sample from a batch of the loader; without `image_size` all images fill their
    buffer, without `target_weight` (see `target_weights`) all targets count. The target is the
    first camera's future, or that of the whole mosaic."""
    seeds = batch["aug_seed"] if augment and spec.augmentation else None
    latents = encode_images(frozen, spec, batch["images"], batch.get("image_size"), seeds)
    action_dim_is_pad = ~batch["action_dim_mask"]
    actions = frozen.actions.of(batch["norm_id"][:, None]).normalize(batch["actions"])
    return Sample(
        context=make_context(
            frozen, latents[:, 0], batch["text_id"], batch["proprio"], batch["norm_id"]
        ),
        target=latents[:, 1, 0],
        actions=zero_missing_dims(actions, action_dim_is_pad[:, None]),
        action_is_pad=batch["action_is_pad"],
        action_dim_is_pad=action_dim_is_pad,
        target_weight=batch.get("target_weight"),
    )


def target_weights(is_pad: Bool[Array, " b"]) -> Float[Array, " b"]:
    """1 for targets within their episode and 0 behind it, over the mean of these (if not 0)."""
    valid = (~is_pad).astype(jnp.float32)
    return valid / jnp.maximum(valid.mean(), 1 / valid.size)


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
    abstract = abstract_frozen_trees(checkpoints, step, autoencoder, names)
    return frozen_from_trees({**checkpoints.restore(step, abstract), **instead}, autoencoder)


def abstract_frozen_trees(
    checkpoints: Checkpoints,
    step: int,
    autoencoder: Mapping[str, Any],
    names: Sequence[str] = FROZEN_TREES,
) -> dict[str, Any]:
    """Shapes and dtypes of these trees of a checkpoint; those of the autoencoder are its section's.

    CheckpointError: one is not there. Unreadable: what describes it is damaged.
    """
    abstract = {name: checkpoints.abstract(step, name) for name in names}
    if "autoencoder" in abstract:
        abstract["autoencoder"] = abstract_autoencoder(autoencoder)
    return abstract


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
