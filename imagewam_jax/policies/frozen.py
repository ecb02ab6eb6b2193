"""What a policy needs besides its parameters, and how it turns raw data into model inputs.

Images become latents, instructions become features, states and actions are normalised. All of
it runs inside jit, the same way for training and for acting.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from imagewam_jax.data.device import mosaic, to_model_range
from imagewam_jax.data.normalization import Normalizer, zero_missing_dims
from imagewam_jax.models.autoencoders import AUTOENCODERS
from imagewam_jax.models.imagewam import Context, Sample
from imagewam_jax.policies.config import choose, from_fields

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


def frozen_to_tree(frozen: Frozen) -> dict[str, Any]:
    """The arrays as nested dictionaries."""
    return {
        "autoencoder": nnx.to_pure_dict(nnx.state(frozen.autoencoder)),
        "text": frozen.text,
        "text_length": frozen.text_length,
        "actions": dataclasses.asdict(frozen.actions),
        "state": dataclasses.asdict(frozen.state),
    }


def frozen_from_tree(tree: Mapping[str, Any], autoencoder: Mapping[str, Any]) -> Frozen:
    """The inverse; `autoencoder` is that section of the config."""
    graph, state = nnx.split(jax.eval_shape(lambda: new_autoencoder(autoencoder)))
    nnx.replace_by_pure_dict(state, tree["autoencoder"])
    return Frozen(
        autoencoder=nnx.merge(graph, state),
        text=tree["text"],
        text_length=tree["text_length"],
        actions=Normalizer(**tree["actions"]),
        state=Normalizer(**tree["state"]),
    )


def abstract_frozen_tree(
    autoencoder: Mapping[str, Any], text: tuple[int, int, int], action_dim: int, state_dim: int
) -> dict[str, Any]:
    """Shapes of `frozen_to_tree`; `text` is the shape of the text features."""

    def normalizer(dim):
        return {"scale": jnp.zeros(dim), "center": jnp.zeros(dim)}

    return jax.eval_shape(
        lambda: {
            "autoencoder": nnx.to_pure_dict(nnx.state(new_autoencoder(autoencoder))),
            "text": jnp.zeros(text),
            "text_length": jnp.zeros(text[:1], jnp.int32),
            "actions": normalizer(action_dim),
            "state": normalizer(state_dim),
        }
    )


def new_autoencoder(section: Mapping[str, Any]) -> nnx.Module:
    """The autoencoder that a config names, with random weights."""
    fields = {k: v for k, v in section.items() if k not in ("name", "weights")}
    config, module = choose(AUTOENCODERS, section["name"], "autoencoder.name")
    return module(from_fields(config, fields, "autoencoder"), rngs=nnx.Rngs(0))
