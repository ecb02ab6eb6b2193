"""From raw data to the inputs of the model, the same way for training and for acting.

`make_sample` is what the loss calls with a batch of the loader, `make_context` what acting calls
with observations. Both encode images with `encode_images` and describe the situation with
`_context`. All of it runs inside jit.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
    """What a policy needs besides its parameters: fixed during training, part of every checkpoint.

    text, text_length: features of the known prompts, all padded at their end to one bucket.
    actions, state: normalizers between real units and those of the model, a row for each dataset.
    """

    autoencoder: nnx.Module
    text: Float[Array, "prompts tokens text_dim"]
    text_length: Int[Array, " prompts"]
    actions: Normalizer
    state: Normalizer


class Observations(NamedTuple):
    """A batch of what robots see and are told.

    images: RGB, the cameras in the order of `data.cameras`, of any height and width: they are
        resized as the stored images were in training.
    state: in the units of the dataset.
    text_id: rows of `PolicyAssets.text`.
    image_size: rows and columns of each image, where images of several sizes lie in the top left
        corners of one buffer; None: all images fill it.
    """

    images: UInt8[Array, "b camera h w 3"]
    state: Float[Array, "b p"]
    text_id: Int[Array, " b"]
    image_size: Int[Array, "b camera 2"] | None = None


def make_sample(
    assets: PolicyAssets,
    spec: ImageSpec,
    batch: Mapping[str, Array],
    *,
    augment: bool = False,
) -> Sample:
    """A training sample from a batch of the loader.

    The target is the future image of the first camera, or of the whole mosaic. Without `image_size`
    in the batch, all images fill their buffer; without `target_weight` (see `target_weights`), all
    targets count alike; without `delay`, no action is known.
    """
    seeds = batch["aug_seed"] if augment and spec.augmentation else None
    latents = encode_images(assets, spec, batch["images"], batch.get("image_size"), seeds)
    current, future = latents[:, 0], latents[:, 1, 0]
    action_dim_is_pad = ~batch["action_dim_mask"]
    actions = assets.actions.of(batch["dataset_id"][:, None]).normalize(batch["actions"])
    return Sample(
        context=_context(assets, current, batch["text_id"], batch["proprio"], batch["dataset_id"]),
        target=future,
        actions=zero_missing_dims(actions, action_dim_is_pad[:, None]),
        action_is_pad=batch["action_is_pad"],
        action_dim_is_pad=action_dim_is_pad,
        target_weight=batch.get("target_weight"),
        delay=batch.get("delay"),
    )


def make_context(
    assets: PolicyAssets,
    spec: ImageSpec,
    observations: Observations,
    dataset_id: Int[Array, "*b"] | int = 0,
) -> Context:
    """What the policy acts on. States are in the units of the dataset that `dataset_id` numbers."""
    images = observations.images[:, :, None]
    latents = encode_images(assets, spec, images, observations.image_size)
    return _context(assets, latents[:, 0], observations.text_id, observations.state, dataset_id)


def encode_images(
    assets: PolicyAssets,
    spec: ImageSpec,
    images: UInt8[Array, "b camera moment h w 3"],
    sizes: Int[Array, "b camera 2"] | None = None,
    seeds: UInt32[Array, " b"] | None = None,
) -> Float[Array, "b moment reference rows columns channels"]:
    """Latents at each moment: one reference for the mosaic of all cameras, or one for each camera.

    sizes, seeds: see `images.prepare_images`.
    """
    prepared = prepare_images(images, sizes, spec, seeds)
    if spec.layout != REFERENCES:
        prepared = prepared[:, :, None]
    latents = assets.autoencoder.encode(prepared.reshape(-1, *prepared.shape[3:]))
    return latents.reshape(*prepared.shape[:3], *latents.shape[1:])


def _context(
    assets: PolicyAssets,
    references: Float[Array, "b reference rows columns channels"],
    text_id: Int[Array, " b"],
    state: Float[Array, "b p"],
    dataset_id: Int[Array, "*b"] | int,
) -> Context:
    """Encoded images with the features of the prompts and normalized states."""
    return Context(
        text=assets.text[text_id],
        text_length=assets.text_length[text_id],
        references=references,
        proprio=assets.state.of(dataset_id).normalize(state),
    )


def image_spec(data: Mapping[str, Any]) -> ImageSpec:
    """How the `data` section of a config wants images prepared. DataError: that cannot be done."""
    unknown = sorted(set(data["letterbox"]) - set(data["cameras"]))
    if unknown:
        raise DataError(f"data.letterbox has {unknown}, data.cameras are {list(data['cameras'])}")
    letterbox = tuple(n for n, role in enumerate(data["cameras"]) if role in data["letterbox"])
    return ImageSpec(data["layout"], tuple(data["image_size"]), data["augmentation"], letterbox)


def target_weights(is_pad: Bool[Array, " b"]) -> Float[Array, " b"]:
    """Weights with mean 1 over a batch (0 if all are padding): equal for targets within their
    episode, 0 for targets beyond its end."""
    valid = (~is_pad).astype(jnp.float32)
    return valid / jnp.maximum(valid.mean(), 1 / valid.size)


def work_sizes(data: Mapping[str, Any], assets: PolicyAssets, images: Sequence[int]) -> Sizes:
    """Sizes to count FLOPs by, for a batch of images [batch, camera, moment, rows, columns, 3].

    data: that section of a config. assets: may be abstract.
    """
    shape = jax.ShapeDtypeStruct((1, images[1], 1, *images[3:]), jnp.uint8)
    latents = jax.eval_shape(
        lambda assets, images: encode_images(assets, image_spec(data), images), assets, shape
    )
    _, _, references, *grid, _ = latents.shape
    return Sizes(images[0], assets.text.shape[1], tuple(grid), tuple(grid), references)
