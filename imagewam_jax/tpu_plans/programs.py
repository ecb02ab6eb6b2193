"""The programs that are planned, the train step and acting, just as they run on devices."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagewam_jax.config.schema import DTYPES, policy_config
from imagewam_jax.errors import PlanError
from imagewam_jax.models import flops
from imagewam_jax.models.flops import Sizes
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import abstract_params, policy_builder
from imagewam_jax.models.partitioning import partitioned
from imagewam_jax.policy.policy import compute_actions
from imagewam_jax.preprocess.inputs import PolicyAssets, encode_images, image_spec, work_sizes
from imagewam_jax.tpu_plans.arguments import (
    Inputs,
    abstract_assets,
    abstract_batch,
    abstract_observations,
    bytes_per_chip,
    shaped,
)
from imagewam_jax.tpu_plans.flops import function_flops, jaxpr_flops
from imagewam_jax.training.prepare import check_fits
from imagewam_jax.training.sharding import (
    RULES,
    batch_rows,
    batch_sharding,
    param_shardings,
    with_shardings,
)
from imagewam_jax.training.state import trained_paths
from imagewam_jax.training.step import make_trainer


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

    memory: bytes of its arguments on each chip, by what they are.
    """

    name: str
    traced: jax.stages.Traced
    memory: dict[str, int]
    sizes: Sizes
    counts: Counts


def train_program(config: Mapping[str, Any], inputs: Inputs, mesh: Mesh) -> Program:
    """Trace the train step on a mesh. ConfigError, DataError: it would not run there."""
    policy = policy_config(config["model"])
    check_fits(config, policy)
    batch_size = config["train"]["batch_size"]
    batch_rows(mesh, batch_size, config["train"]["accumulate"])

    def step_of(policy: ImageWAMConfig) -> tuple[Callable, Any]:
        trainer = make_trainer(config, policy, mesh)
        results = trainer.shardings, trainer.shardings.step
        step = jax.jit(
            trainer.step,
            donate_argnums=0,
            out_shardings=results,
            compiler_options=trainer.compiler_options,
        )
        state = jax.eval_shape(trainer.init, 0, {})
        return step, with_shardings(state, trainer.shardings)

    step, state = step_of(policy)
    assets = abstract_assets(config, policy, inputs, mesh)
    batch = abstract_batch(config, policy, inputs, mesh)
    traced = step.trace(state, batch, assets)
    kept, _ = step_of(dataclasses.replace(policy, remat="none"))
    sizes = work_sizes(config["data"], assets, batch["images"].shape)
    trained = trained_paths(policy, config["train"]["frozen"])

    def is_trained(path: tuple[str, ...]) -> bool:
        return ".".join(path) in trained

    computed = jaxpr_flops(traced.jaxpr)
    return Program(
        "train",
        traced,
        {
            "parameters (float32)": bytes_per_chip(state.params),
            "fixed parameters": bytes_per_chip(state.fixed),
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
            recomputed=computed - jaxpr_flops(kept.trace(state, batch, assets).jaxpr),
        ),
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

    @jax.jit
    def act(params, assets, observations, noise):
        with partitioned(mesh, RULES):
            return compute_actions(rebuild(params), assets, observations, noise, spec, steps)

    traced = act.trace(params, assets, observations, noise)
    _, cameras, *image = observations.images.shape
    images = (batch, cameras, 1, *image)
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
            autoencoder=_encoding_flops(config, assets, images),
            computed=jaxpr_flops(traced.jaxpr),
            recomputed=0.0,
        ),
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
