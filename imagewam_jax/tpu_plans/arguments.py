"""The arguments of the planned programs as shapes, without data, weights or memory."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from imagewam_jax.checkpoints.assets import new_autoencoder
from imagewam_jax.config.schema import DTYPES
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.sharding import batch_sharding, replicated
from imagewam_jax.preprocess.inputs import Observations, PolicyAssets
from imagewam_jax.preprocess.normalization import Normalizer

# Qwen3 tokens of the longest prompt of LIBERO's four suites in the official template; the shortest
# has 31.
LIBERO_PROMPT = 46


class Inputs(NamedTuple):
    """Sizes of the data that a config does not say.

    prompts: the number of rows of the text table. text_tokens: the bucket that texts are padded to.
    image_size: height and width of images as they are stored.
    """

    prompts: int
    text_tokens: int
    image_size: tuple[int, int]


def default_inputs(config: Mapping[str, Any]) -> Inputs:
    """The sizes of a dataset like LIBERO: 40 prompts, in the smallest bucket that holds them."""
    buckets = config["text"]["buckets"]
    fitting = [bucket for bucket in buckets if bucket >= LIBERO_PROMPT]
    return Inputs(40, min(fitting, default=max(buckets)), tuple(config["data"]["image_size"]))


def shaped(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def abstract_assets(
    config: Mapping[str, Any], policy: ImageWAMConfig, inputs: Inputs, mesh: Mesh
) -> PolicyAssets:
    """The policy assets of one dataset, replicated on every device; the autoencoder is float32."""
    everywhere = replicated(mesh)
    tokens, width = inputs.text_tokens, policy.backbone.text_dim
    action, state = policy.expert.action_dim, policy.proprio_dim or 0
    dtype = DTYPES[config["train"]["compute_dtype"]]

    def normalizer(dim: int) -> Normalizer:
        return Normalizer(*(shaped((1, dim), jnp.float32, everywhere) for _ in range(2)))

    graph, autoencoder = nnx.split(jax.eval_shape(lambda: new_autoencoder(config["autoencoder"])))
    autoencoder = jax.tree.map(lambda x: shaped(x.shape, x.dtype, everywhere), autoencoder)
    return PolicyAssets(
        autoencoder=nnx.merge(graph, autoencoder),
        text=shaped((inputs.prompts, tokens, width), dtype, everywhere),
        text_length=shaped((inputs.prompts,), jnp.int32, everywhere),
        actions=normalizer(action),
        state=normalizer(state),
    )


def abstract_batch(
    config: Mapping[str, Any], policy: ImageWAMConfig, inputs: Inputs, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of the loader's batch that the train step takes."""
    batch, cameras = config["train"]["batch_size"], len(config["data"]["cameras"])
    horizon, action = policy.horizon, policy.expert.action_dim
    shapes = {
        "images": ((cameras, 2, *inputs.image_size, 3), jnp.uint8),
        "aug_seed": ((), jnp.uint32),
        "text_id": ((), jnp.int32),
        "proprio": ((policy.proprio_dim or 0,), jnp.float32),
        "actions": ((horizon, action), jnp.float32),
        "action_is_pad": ((horizon,), jnp.bool_),
        "action_dim_mask": ((action,), jnp.bool_),
        "target_is_pad": ((), jnp.bool_),
        "dataset_id": ((), jnp.int32),
    }
    sharding = batch_sharding(mesh)
    return {
        name: shaped((batch, *shape), dtype, sharding) for name, (shape, dtype) in shapes.items()
    }


def abstract_observations(
    config: Mapping[str, Any], policy: ImageWAMConfig, inputs: Inputs, mesh: Mesh, batch: int
) -> Observations:
    """The observations of `batch` robots."""
    cameras, sharding = len(config["data"]["cameras"]), batch_sharding(mesh)
    return Observations(
        images=shaped((batch, cameras, *inputs.image_size, 3), jnp.uint8, sharding),
        state=shaped((batch, policy.proprio_dim or 0), jnp.float32, sharding),
        text_id=shaped((batch,), jnp.int32, sharding),
    )


def bytes_per_chip(tree: Any) -> int:
    """Bytes of abstract arrays with shardings on each chip, without the padding of layouts."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
