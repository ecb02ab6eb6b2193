"""Converts the recorded inputs of a policy to ours."""

from collections.abc import Iterator
from itertools import count, takewhile
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagewam_jax.errors import ConversionError
from imagewam_jax.models import flow_matching
from imagewam_jax.models.flow_matching import Noised
from imagewam_jax.models.imagewam import Context, Draws, ImageWAMConfig, Sample
from imagewam_jax.parity.cases.base import check_axes, check_width, run_once, valid_lengths
from imagewam_jax.parity.cases.folder import Folder, Tensors
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.official_order import TextLayout
from imagewam_jax.parity.stacks import Stack, checked_stack

TRAINING = ("text_hidden_states", "noise_video", "u_video", "noise_action", "u_action")

_STEPS = ("batch", "steps", "dims")
_STATE = "[batch, steps, dims] or [batch, dims]"
_TRAINING_AXES = {
    "u_video": ("batch",),
    "action": _STEPS,
    "noise_action": _STEPS,
    "u_action": ("batch",),
    "action_is_pad": ("batch", "steps"),
    "action_dim_is_pad": ("batch", "dims"),
}


class TrainingCase(NamedTuple):
    """One recorded training step."""

    io: Tensors
    stack: Stack
    sample: Sample
    draws: Draws
    text: TextLayout

    @property
    def grid(self) -> tuple[int, int]:
        return self.sample.target.shape[1:3]


def training_case(loaded: Loaded, folder: Folder) -> TrainingCase:
    """The training step of a folder. ConversionError: it is of another model, or one that our code
    cannot repeat."""
    io, config = folder.need(*TRAINING), loaded.config("policy")
    stack = checked_stack(folder, config.backbone)
    for name, axes in _TRAINING_AXES.items():
        if name in io:
            check_axes(io.file, name, io[name], *axes)
    context = recorded_context(stack, config, io, image="ref_image_latents")
    action = io["action"]
    check_width(io.file, "action", action.shape[-1], config.expert.action_dim, "policy")

    def image(name: str) -> Float[Array, "b h w c"]:
        return stack.cells(config.backbone, io, name, "target_img_ids")

    sample = Sample(
        context,
        image("target_latent"),
        action,
        io.get("action_is_pad"),
        io.get("action_dim_is_pad"),
    )
    draws = Draws(image("noise_video"), io["u_video"], io["noise_action"], io["u_action"])
    _, tokens, _ = context.text.shape
    text = stack.text_layout(config, tokens, context.text_length)
    return TrainingCase(io, stack, sample, draws, text)


def noised(case: TrainingCase, config: ImageWAMConfig) -> tuple[Noised, Noised]:
    """Target and action at their times, by our flow matching."""
    sample, draws, dtype = case.sample, case.draws, jnp.dtype(config.coordinate_dtype)
    target = sample.target, draws.target_noise, draws.target_u, config.target_flow.train_shift
    action = sample.actions, draws.action_noise, draws.action_u, config.action_flow.train_shift
    return _noised(*target, dtype), _noised(*action, dtype)


_noised = run_once(flow_matching.noised, static_argnames=("shift", "dtype"))


def joint_inputs(case: TrainingCase, config: ImageWAMConfig) -> tuple[Context, *tuple[Array, ...]]:
    """The arguments of `ImageWAM.velocities`: recorded ones where there are any, so that errors
    of the noising do not add to those of the velocities."""
    target, action = noised(case, config)
    io, dtype, x = case.io, config.coordinate_dtype, target.x
    if "noisy_video" in io:
        x = case.stack.cells(config.backbone, io, "noisy_video", "target_img_ids")
    return (
        case.sample.context,
        x,
        jnp.asarray(io.get("timestep_video", target.timestep_b), dtype),
        io.get("noisy_action", action.x),
        jnp.asarray(io.get("timestep_action", action.timestep_b), dtype),
    )


def recorded_context(
    stack: Stack, config: ImageWAMConfig, io: Tensors, *, image: str, prefix: str = ""
) -> Context:
    """The context whose tensors' names begin with `prefix`; `image` names its reference."""
    text = io[f"{prefix}text_hidden_states"]
    length_b, proprio = (
        valid_lengths(io, f"{prefix}text_attention_mask"),
        io.get(f"{prefix}proprio"),
    )
    name, text_dim = f"{prefix}text_hidden_states", config.backbone.text_dim
    check_axes(io.file, name, text, "batch", "tokens", "channels")
    check_width(io.file, name, text.shape[-1], text_dim, "policy")
    if (proprio is None) is not (config.proprio_dim is None):
        has = "no robot state" if proprio is None else "a robot state"
        raise ConversionError(f"{io.file}: has {has}, unlike the checkpoint's policy")
    if proprio is not None:
        check_width(io.file, f"{prefix}proprio", proprio.shape[-1], config.proprio_dim, "policy")
        proprio = first_step(io.file, f"{prefix}proprio", proprio)
        if len(proprio) != len(text):
            raise ConversionError(
                f"{io.file}: {prefix}proprio has {len(proprio)} samples, the text {len(text)}: "
                f"expected {_STATE}"
            )
    reference = stack.cells(config.backbone, io, prefix + image, f"{prefix}ref_img_ids")
    return Context(text, length_b, reference[:, None], proprio)


def first_step(file: str, name: str, state: Float[np.ndarray, "..."]) -> Float[np.ndarray, "b p"]:
    """The current robot state: the first step of a recorded one, which can lack the axis of steps.

    ConversionError: it has other axes.
    """
    if state.ndim not in (2, 3):
        raise ConversionError(f"{file}: {name} has shape {list(state.shape)}, expected {_STATE}")
    return state if state.ndim == 2 else state[:, 0]


def recorded_samples(io: Tensors) -> Iterator[str]:
    """The prefixes of the samples that were acted on."""
    return takewhile(lambda p: f"{p}noise" in io, (f"infer{i}." for i in count()))
