"""What a policy needs besides its parameters, and how it turns raw data into model inputs.

Images become latents, instructions become features, states and actions are normalised. All of
it runs inside jit, the same way for training and for acting.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8, UInt32

from imagewam_jax.errors import DataError
from imagewam_jax.models.flops import Sizes
from imagewam_jax.models.imagewam import Context, Sample
from imagewam_jax.preprocess.images import REFERENCES, ImageSpec, prepare_images
from imagewam_jax.preprocess.normalization import Normalizer, zero_missing_dims


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PolicyAssets:
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
    assets: PolicyAssets,
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
    latents = assets.autoencoder.encode(prepared.reshape(-1, *prepared.shape[3:]))
    return latents.reshape(*prepared.shape[:3], *latents.shape[1:])


def make_context(
    assets: PolicyAssets,
    references: Float[Array, "b reference rows columns channels"],
    text_id: Int[Array, " b"],
    state: Float[Array, "b p"],
    dataset_id: Int[Array, "*b"],
) -> Context:
    """What the policy decides on. `text_id` is a row of `frozen.text`; `state` in the units of the
    dataset that `dataset_id` numbers."""
    return Context(
        text=assets.text[text_id],
        text_length=assets.text_length[text_id],
        references=references,
        proprio=assets.state.of(dataset_id).normalize(state),
    )


def make_sample(
    assets: PolicyAssets,
    spec: ImageSpec,
    batch: Mapping[str, Array],
    *,
    augment: bool = False,
) -> Sample:
    """A training sample from a batch of the loader; without `image_size` all images fill their
    buffer, without `target_weight` (see `target_weights`) all targets count. The target is the
    first camera's future, or that of the whole mosaic."""
    seeds = batch["aug_seed"] if augment and spec.augmentation else None
    latents = encode_images(assets, spec, batch["images"], batch.get("image_size"), seeds)
    action_dim_is_pad = ~batch["action_dim_mask"]
    actions = assets.actions.of(batch["dataset_id"][:, None]).normalize(batch["actions"])
    return Sample(
        context=make_context(
            assets, latents[:, 0], batch["text_id"], batch["proprio"], batch["dataset_id"]
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


def work_sizes(data: Mapping[str, Any], assets: PolicyAssets, images: Sequence[int]) -> Sizes:
    """Of a batch with images of this shape, [batch, camera, moment, rows, columns, 3].

    data: that section of a config. frozen: may be abstract.
    """
    shape = jax.ShapeDtypeStruct((1, images[1], 1, *images[3:]), jnp.uint8)
    latents = jax.eval_shape(
        lambda assets, images: encode_images(assets, image_spec(data), images), assets, shape
    )
    _, _, references, *grid, _ = latents.shape
    return Sizes(images[0], assets.text.shape[1], tuple(grid), tuple(grid), references)
