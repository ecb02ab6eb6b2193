"""The programs that are planned, the train step and acting, just as they run on devices."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagewam_jax.config.schema import DTYPES, policy_config
from imagewam_jax.errors import PlanError
from imagewam_jax.models import flops
from imagewam_jax.models.flops import Sizes
from imagewam_jax.models.parameters import abstract_params, module_tree, policy_builder
from imagewam_jax.models.sharding import (
    batch_rows,
    batch_sharding,
    cache_sharding,
    param_shardings,
)
from imagewam_jax.policy.programs import compute_actions
from imagewam_jax.preprocess.inputs import (
    PolicyAssets,
    encode_images,
    image_spec,
    make_context,
    work_sizes,
)
from imagewam_jax.tpu_plans.arguments import (
    Inputs,
    abstract_assets,
    abstract_batch,
    abstract_observations,
    bytes_per_chip,
    shaped,
)
from imagewam_jax.tpu_plans.floor import Stage, acting_stages, training_stages
from imagewam_jax.tpu_plans.flops import function_flops, jaxpr_flops, kernel_flops
from imagewam_jax.training.prepare import check_fits
from imagewam_jax.training.step import abstract_state, jit_train_step, step_settings


@dataclasses.dataclass(frozen=True)
class Counts:
    """FLOPs of one call on all chips together.

    useful: the policy's model FLOPs (`models.flops`). dense: the same with 512 rows of text and, in
    training, one attention over all streams. autoencoder: encoding the images. computed: everything
    in the traced program, of which the backward pass computes `recomputed` a second time.
    """

    useful: float
    dense: float
    autoencoder: float
    computed: float
    recomputed: float


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced function, ready to be compiled, with its sizes and counts.

    memory: bytes of its arguments on each chip, by what they are. kernel_flops: of its Pallas
    kernels by name, on all chips together. stages: what it must do at least. cache: bytes of keys
    and values of the context on each chip, where they are kept.
    """

    name: str
    traced: jax.stages.Traced
    memory: dict[str, int]
    sizes: Sizes
    counts: Counts
    kernel_flops: dict[str, int]
    stages: tuple[Stage, ...]
    cache: int = 0


def train_program(config: Mapping[str, Any], inputs: Inputs, mesh: Mesh) -> Program:
    """Trace the train step on a mesh. ConfigError, DataError: it would not run there."""
    policy = policy_config(config["model"])
    check_fits(config, policy)
    batch_size = config["train"]["batch_size"]
    batch_rows(mesh, batch_size, config["train"]["accumulate"])

    settings = step_settings(config, policy)
    state = abstract_state(settings, mesh)
    assets = abstract_assets(config, policy, inputs, mesh)
    batch = abstract_batch(config, policy, inputs, mesh)
    without_remat = dataclasses.replace(settings, policy=dataclasses.replace(policy, remat="none"))
    with jax.set_mesh(mesh):
        traced = jit_train_step(settings, state).trace(state, batch, assets)
        kept = jit_train_step(without_remat, state).trace(state, batch, assets)
    sizes = work_sizes(config["data"], assets, batch["images"].shape)

    def is_trained(path: tuple[str, ...]) -> bool:
        return ".".join(path) in settings.trained

    computed = jaxpr_flops(traced.jaxpr)
    once = jaxpr_flops(kept.jaxpr)
    return Program(
        "train",
        traced,
        {
            "parameters (float32)": bytes_per_chip(state.params),
            "fixed parameters": bytes_per_chip(state.frozen_params),
            "moving average": bytes_per_chip(state.ema),
            "optimizer": bytes_per_chip(state.optimizer),
            **_frozen_memory(assets),
            "batch": bytes_per_chip(batch),
        },
        sizes,
        Counts(
            useful=flops.training_step(policy, sizes, is_trained).total,
            dense=flops.dense_training_step(policy, sizes, is_trained).total,
            autoencoder=_encoding_flops(config, assets, batch["images"].shape),
            computed=computed,
            recomputed=computed - once,
        ),
        kernel_flops(traced.jaxpr),
        training_stages(once, mesh, state.params, state.frozen_params),
    )


def act_program(config: Mapping[str, Any], inputs: Inputs, mesh: Mesh, batch: int) -> Program:
    """Trace acting for `batch` robots: from images through prefill and Euler steps to actions.

    Parameters have the dtype that the config computes in, as `imagewam convert` can write them.
    PlanError: the mesh cannot share the batch.
    """
    policy, steps = policy_config(config["model"]), config["acting"]["euler_steps"]
    check_fits(config, policy)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch % parts:
        raise PlanError(
            f"--batch {batch} does not divide over mesh.data x mesh.fsdp = {parts}; several chips "
            "can share what one robot needs with --config.mesh.fsdp=1 --config.mesh.tensor=-1"
        )
    spec, dtype = image_spec(config["data"]), DTYPES[config["train"]["compute_dtype"]]
    rebuild = policy_builder(policy)
    params = jax.tree.map(
        lambda x, sharding: shaped(x.shape, dtype, sharding),
        abstract_params(policy),
        param_shardings(mesh, policy),
    )
    assets = abstract_assets(config, policy, inputs, mesh)
    observations = abstract_observations(config, policy, inputs, mesh, batch)
    noise = shaped(
        (batch, policy.horizon, policy.expert.action_dim), jnp.float32, batch_sharding(mesh)
    )

    def prefill(params, assets, observations):
        return rebuild(params).prefill(make_context(assets, spec, observations)).groups

    cache = jax.tree.map(
        lambda x: shaped(x.shape, x.dtype, cache_sharding(mesh, x.shape)),
        jax.eval_shape(prefill, params, assets, observations),
    )

    @jax.jit
    def act(params, assets, observations, noise):
        return compute_actions(rebuild(params), assets, observations, noise, spec, steps)

    with jax.set_mesh(mesh):
        traced = act.trace(params, assets, observations, noise)
    _, cameras, *image = observations.images.shape
    images = (batch, cameras, 1, *image)
    encoding = _encoding_flops(config, assets, images)
    sizes = work_sizes(config["data"], assets, images)
    return Program(
        "act",
        traced,
        {
            f"parameters ({dtype.dtype.name})": bytes_per_chip(params),
            **_frozen_memory(assets),
            "batch": bytes_per_chip((observations, noise)),
        },
        sizes,
        Counts(
            useful=flops.acting(policy, sizes, steps).total,
            dense=flops.acting(
                policy, sizes._replace(text_tokens=flops.OFFICIAL_TEXT_TOKENS), steps
            ).total,
            autoencoder=encoding,
            computed=jaxpr_flops(traced.jaxpr),
            recomputed=0.0,
        ),
        kernel_flops(traced.jaxpr),
        acting_stages(
            policy,
            sizes,
            mesh,
            steps=steps,
            weight_bytes=dtype.dtype.itemsize,
            autoencoder_flops=encoding,
            autoencoder=module_tree(assets.autoencoder),
        ),
        cache=bytes_per_chip(cache),
    )


def _frozen_memory(assets: PolicyAssets) -> dict[str, int]:
    return {
        "autoencoder": bytes_per_chip(assets.autoencoder),
        "text": bytes_per_chip((assets.text, assets.text_length)),
        "normalisation": bytes_per_chip((assets.actions, assets.state)),
    }


def _encoding_flops(config: Mapping[str, Any], assets: PolicyAssets, shape: tuple[int, ...]) -> int:
    """FLOPs of encoding images of shape [batch, camera, moment, height, width, 3]."""

    def encode(assets, images):
        return encode_images(assets, image_spec(config["data"]), images)

    return function_flops(encode, assets, jax.ShapeDtypeStruct(shape, jnp.uint8))
