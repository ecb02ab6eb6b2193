"""Builds our models from the folders that the recorded cases live in, and compiles them.

Policies, cases and compiled functions are shared by the tests: compiling is what takes time.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  (teaches NumPy the bfloat16 that safetensors files hold)
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import Flux2Config
from imagewam_jax.models.imagewam import Cache, Context, Draws, ImageWAM, ImageWAMConfig, Sample
from imagewam_jax.models.parameters import module_tree
from imagewam_jax.weights.io.tensors import ArraySource, TensorSource
from imagewam_jax.weights.layouts.imagewam import imagewam_rules, imagewam_source
from tests.weights.foreign import to_tree

training_loss = jax.jit(ImageWAM.training_loss)
velocities = jax.jit(ImageWAM.velocities)
prefill = jax.jit(ImageWAM.prefill)
act = jax.jit(ImageWAM.act)


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def flux2_config(params: dict) -> Flux2Config:
    assert not params["use_guidance_embed"]
    return Flux2Config(
        in_channels=params["in_channels"],
        text_dim=params["context_in_dim"],
        dim=params["hidden_size"],
        heads=params["num_heads"],
        double_layers=params["depth"],
        single_layers=params["depth_single_blocks"],
        mlp_ratio=params["mlp_ratio"],
        rope_axes=tuple(params["axes_dim"]),
        rope_theta=params["theta"],
    )


def expert_config(params: dict) -> ActionExpertConfig:
    return ActionExpertConfig(
        action_dim=params["action_dim"], dim=params["hidden_dim"], mlp_ratio=params["mlp_ratio"]
    )


def with_parameters(make, tree_of) -> nnx.Module:
    """The module that `make` builds, holding `tree_of(its abstract parameters)`."""
    abstract = jax.eval_shape(make)
    graph, state = nnx.split(abstract)
    nnx.replace_by_pure_dict(state, tree_of(module_tree(abstract)))
    return nnx.merge(graph, state)


@functools.cache
def load_policy(folder: Path, **changes) -> ImageWAM:
    case = config_of(folder)
    config = ImageWAMConfig(
        backbone=flux2_config(case["flux2_params"]),
        expert=expert_config(case["action_dit_config"]),
        proprio_dim=case["proprio_dim"],
        horizon=case["action_horizon"],
        **changes,
    )
    return policy_of(folder, config)


def policy_of(folder: Path, config: ImageWAMConfig) -> ImageWAM:
    """The policy of a folder, whose config is known."""
    return with_parameters(
        lambda: ImageWAM(config, rngs=nnx.Rngs(0)),
        lambda like: to_tree(imagewam_rules(config), tensors_of(folder), like, str(folder)),
    )


def tensors_of(folder: Path) -> TensorSource:
    """The official tensors of the policy of a folder."""
    tensors = ArraySource(load_file(folder / "model.safetensors"), str(folder))
    return imagewam_source(tensors, {}, None)


def assert_acting_is(
    joint: np.ndarray, policy: ImageWAM, cache: Cache, noise: np.ndarray, timesteps: np.ndarray
) -> None:
    """The first velocity that acting finds against a sample's part of a cache is the sample's part
    of `joint`, the velocities of the joint forward at these times."""
    for i, one in enumerate(timesteps):
        schedule = policy.action_schedule(1)._replace(timestep=jnp.full(1, one))
        groups = jax.tree.map(lambda x, i=i: x[:, i : i + 1], cache.groups)
        one_cache = cache._replace(groups=groups, length_b=cache.length_b[i : i + 1])
        _, steps = act(policy, one_cache, noise[i : i + 1], schedule)
        np.testing.assert_allclose(steps.velocity[0, 0], joint[i], atol=3e-6, rtol=0)


def grid(folder: Path) -> tuple[int, int]:
    height, width = config_of(folder)["image_hw"]
    return height // 16, width // 16


def as_grid(tokens: np.ndarray, folder: Path) -> np.ndarray:
    """[b, h w, c] -> [b, h, w, c]."""
    return tokens.reshape(tokens.shape[0], *grid(folder), tokens.shape[-1])


@functools.cache
def train_case(folder: Path) -> tuple[dict[str, np.ndarray], Sample, Draws]:
    io = load_file(folder / "train.safetensors")
    return io, *case_of(io, lambda tokens: as_grid(tokens, folder))


def case_of(
    io: dict[str, np.ndarray], cells: Callable[[np.ndarray], np.ndarray]
) -> tuple[Sample, Draws]:
    """The sample of a recorded training step, and its noises and times; `cells` makes ours of a
    recorded image."""
    context = Context(
        text=io["text_hidden_states"],
        text_length=io["text_attention_mask"].sum(-1),
        references=cells(io["ref_image_latents"])[:, None],
        proprio=io["proprio"][:, 0] if "proprio" in io else None,
    )
    sample = Sample(
        context,
        cells(io["target_latent"]),
        io["action"],
        io.get("action_is_pad"),
        io.get("action_dim_is_pad"),
    )
    draws = Draws(cells(io["noise_video"]), io["u_video"], io["noise_action"], io["u_action"])
    return sample, draws
