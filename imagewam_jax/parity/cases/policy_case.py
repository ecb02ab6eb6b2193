"""Converts recorded inputs of a policy to ours, and our outputs to the recorded layout.

Officially images are tokens [b, row column, c] and text stands before them; here images are grids,
and text is last.
"""

from collections.abc import Iterator
from itertools import count, takewhile
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from imagewam_jax.errors import ConversionError
from imagewam_jax.models import flow_matching
from imagewam_jax.models.flow_matching import Noised
from imagewam_jax.models.imagewam import Context, Draws, ImageWAM, ImageWAMConfig, Sample
from imagewam_jax.parity.cases.base import check_axes, check_width, run_once, valid_lengths
from imagewam_jax.parity.cases.folder import Folder, Tensors
from imagewam_jax.parity.cases.loaded import Loaded

STACK = "flux2"  # what the official code calls this family
TRAINING = ("text_hidden_states", "noise_video", "u_video", "noise_action", "u_action")

_TOKENS, _STEPS = ("batch", "tokens", "channels"), ("batch", "steps", "dims")
_STATE = "[batch, steps, dims] or [batch, dims]"
_TRAINING_AXES = {
    "target_latent": _TOKENS,
    "noise_video": _TOKENS,
    "u_video": ("batch",),
    "action": _STEPS,
    "noise_action": _STEPS,
    "u_action": ("batch",),
    "action_is_pad": ("batch", "steps"),
    "action_dim_is_pad": ("batch", "dims"),
}


class TextLayout(NamedTuple):
    """The official order of the text's rows, with the robot state's token.

    source: for each official row, the one of ours. valid: those that are not padding.
    """

    source: Int[np.ndarray, "b t"]
    valid: Bool[np.ndarray, "b t"]

    def __call__(self, rows: Float[Array, "b t *c"]) -> Float[np.ndarray, "b t *c"]:
        """Our rows in the official order; zeros at padding, whose values mean nothing."""
        rows = np.asarray(rows)[np.arange(len(self.source))[:, None], self.source]
        rows[~self.valid] = 0
        return rows


def text_layout(config: ImageWAMConfig, tokens: int, length_b: Int[np.ndarray, " b"]) -> TextLayout:
    """The layout of `tokens` padded tokens, of which `length_b` are valid."""
    if config.proprio_dim is None:
        index = np.broadcast_to(np.arange(tokens), (len(length_b), tokens))
        return TextLayout(index, index < length_b[:, None])
    index = np.broadcast_to(np.arange(tokens + 1), (len(length_b), tokens + 1))
    if config.proprio_position is None:
        return TextLayout(index, index <= length_b[:, None])
    # Behind the padding; ours is behind the valid text, with the position of the last row.
    last, is_text = index == tokens, index < length_b[:, None]
    source = np.where(last, length_b[:, None], np.where(is_text, index, index + 1))
    return TextLayout(source, last | is_text)


def official_text(
    policy: ImageWAM, context: Context, layout: TextLayout
) -> tuple[Float[np.ndarray, "b t c"], Bool[np.ndarray, "b t"]]:
    """The text with the robot state's token, and which rows of it are valid, in official order."""
    text, length_b = _context(policy, context)
    references = np.prod(context.references.shape[1:4])
    valid = np.arange(text.shape[1]) < np.asarray(length_b - references)[:, None]
    return layout(text), np.take_along_axis(valid, layout.source, axis=1)


@run_once
def _context(policy: ImageWAM, context: Context):
    text, layout = policy.layout(context, None)
    return text, layout.context_length_b


class TrainingCase(NamedTuple):
    """One recorded training step."""

    io: Tensors
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
    check_stack(folder)
    for name, axes in _TRAINING_AXES.items():
        if name in io:
            check_axes(io.file, name, io[name], *axes)
    context = recorded_context(config, io, tokens="ref_image_latents")
    action = io["action"]
    check_width(io.file, "action", action.shape[-1], config.expert.action_dim, "policy")
    grid = grid_of(io, "target_img_ids")
    sample = Sample(
        context,
        as_grid(io["target_latent"], grid),
        action,
        io.get("action_is_pad"),
        io.get("action_dim_is_pad"),
    )
    draws = Draws(
        as_grid(io["noise_video"], grid), io["u_video"], io["noise_action"], io["u_action"]
    )
    _, tokens, _ = context.text.shape
    return TrainingCase(io, sample, draws, text_layout(config, tokens, context.text_length))


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
    io, dtype = case.io, config.coordinate_dtype
    return (
        case.sample.context,
        as_grid(io.get("noisy_video", as_tokens(target.x)), case.grid),
        jnp.asarray(io.get("unit_timestep_video", target.time_b), dtype),
        io.get("noisy_action", action.x),
        jnp.asarray(io.get("unit_timestep_action", action.time_b), dtype),
    )


def recorded_context(
    config: ImageWAMConfig, io: Tensors, *, tokens: str, prefix: str = ""
) -> Context:
    """The context whose tensors' names begin with `prefix`; `tokens` names its image's."""
    text, references = io[f"{prefix}text_hidden_states"], io[f"{prefix}{tokens}"]
    length_b, proprio = (
        valid_lengths(io, f"{prefix}text_attention_mask"),
        io.get(f"{prefix}proprio"),
    )
    for name, tensor, expected in (
        ("text_hidden_states", text, config.backbone.text_dim),
        (tokens, references, config.backbone.in_channels),
    ):
        check_axes(io.file, prefix + name, tensor, *_TOKENS)
        check_width(io.file, prefix + name, tensor.shape[-1], expected, "policy")
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
    references = as_grid(references, grid_of(io, f"{prefix}ref_img_ids"))[:, None]
    return Context(text, length_b, references, proprio)


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


def check_stack(folder: Folder) -> None:
    stack = folder.config.get("stack", STACK)
    if stack != STACK:
        raise ConversionError(f"{folder.path}: recorded of {stack}, the checkpoint is of {STACK}")


def grid_of(io: Tensors, ids: str) -> tuple[int, int]:
    """Rows and columns of an image, from the positions [b, n, 4] of its tokens."""
    positions = check_axes(io.file, ids, io[ids], "batch", "tokens", "4")
    rows, columns = (int(positions[..., axis].max()) + 1 for axis in (1, 2))
    if rows * columns != positions.shape[1]:
        raise ConversionError(f"{io.file}: {ids} are not those of one whole image")
    return rows, columns


def as_grid(tokens: Float[Array, "b n c"], grid: tuple[int, int]) -> Float[Array, "b h w c"]:
    return tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])


def as_tokens(latent: Float[Array, "b h w c"]) -> Float[Array, "b n c"]:
    return latent.reshape(latent.shape[0], -1, latent.shape[-1])


def with_images(
    valid: Bool[np.ndarray, "b t"], images: Float[np.ndarray, "b n c"]
) -> Bool[np.ndarray, "b t+n"]:
    """The valid entries of [text | images]."""
    return np.concatenate([valid, np.ones(images.shape[:2], bool)], axis=1)
