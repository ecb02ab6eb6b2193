"""What only recordings of policies on OmniGen2 have: the tokens of every layer of a training step,
the transformer alone, and what its autoencoder makes of the reference."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imagewam_jax.models.attention import attend_xla
from imagewam_jax.models.autoencoders.kl import AutoencoderKLConfig
from imagewam_jax.models.backbones.omnigen2 import OmniGen2, OmniGen2Config
from imagewam_jax.models.blocks import AttentionLayout
from imagewam_jax.models.layer_runner import Stack, run_layers
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    having,
    nchw,
    nhwc,
    run_once,
    valid_lengths,
)
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.layers import joint_states
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import TRAINING, joint_inputs, training_case
from imagewam_jax.parity.cases.transformer import complex_factors
from imagewam_jax.parity.images import decode, encode
from imagewam_jax.parity.stacks.omnigen2 import OmniGen2Stack, one_sequence, valid_rows

LAYERS_SIGNATURE = ("pre.video", "pre.video_freqs_real", "pre.action")
NATIVE_SIGNATURE = ("native_forward_pred", "timestep_video", "noisy_video")
MOMENTS_SIGNATURE = ("vae_mean_first_frame", "video")


def _layers_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    policy, case = loaded.module("policy"), training_case(loaded, folder)
    ropes, conditions, before, after = joint_states(policy, *joint_inputs(case, policy.config))
    n_reference = int(np.prod(case.sample.context.references.shape[1:4]))
    sizes = n_reference, int(np.prod(case.grid))
    valid = valid_rows(case.text, *sizes)

    for name, rope in zip(("video", "action"), ropes, strict=True):
        for part, table in zip(("real", "imag"), complex_factors(rope), strict=True):
            table = np.broadcast_to(table, (len(valid), *table.shape[1:]))
            rows = None
            if name == "video":
                table, rows = one_sequence(table, case.text, *sizes), valid
            yield Output(f"pre.{name}_freqs_{part}", table, limits.ROTATION, rows)
    for name, condition in zip(("video", "action"), conditions, strict=True):
        yield Output(f"pre.{name}_temb", condition.time, limits.VELOCITY)
    ((x, a),) = after
    states = [("pre", before), *((f"layer.{i}", (x[i], a[i])) for i in range(len(x)))]
    for name, (tokens, action) in states:
        tokens = one_sequence(tokens, case.text, *sizes)
        yield Output(f"{name}.video", tokens, limits.VELOCITY, valid)
        yield Output(f"{name}.action", action, limits.VELOCITY)


def _inputs(loaded: Loaded, *_) -> dict[str, np.ndarray] | None:
    """No inputs beyond those of the training step; None, so that nothing is recorded, for another
    backbone."""
    return {} if _is_omnigen2(loaded) else None


def _is_omnigen2(loaded: Loaded) -> bool:
    return isinstance(loaded.config("backbone"), OmniGen2Config)


LAYERS = Kind(
    name="every layer of that step",
    part="policy",
    file="trace.safetensors",
    find=having(*LAYERS_SIGNATURE),
    outputs=_layers_outputs,
    inputs=_inputs,
    case="policy",
)


@run_once
def _forward(
    model: OmniGen2,
    target: Float[Array, "b h w c"],
    reference: Float[Array, "b rows columns c"],
    text: Float[Array, "b t text_dim"],
    length_b: Int[Array, " b"],
    timestep_b: Float[Array, " b"],
) -> Float[Array, "b h w c"]:
    """The transformer's velocity of a target, where every token sees all others."""
    grid, target_grid = reference.shape[1:3], target.shape[1:3]
    n_text, n_reference = text.shape[1], grid[0] * grid[1]
    rope = model.rope(jnp.arange(n_text)[None], length_b, grid, 1, target_grid, jnp.float32)
    n_target, context_b = target_grid[0] * target_grid[1], n_reference + length_b
    layout = AttentionLayout(n_target, n_text, context_b, rope, attend_xla)
    condition = model.condition(timestep_b)
    x, condition = model.embed(target, reference[:, None], text, condition, layout)
    # Every token sees all others, as a target does; padded text is still behind all.
    together = layout._replace(
        n_target=x.shape[1], context_length_b=context_b + n_target - x.shape[1]
    )
    (x, _), _ = run_layers(Stack(model, x, condition, together))
    return model.predict(x[:, :n_target], condition).reshape(target.shape)


def _native_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    model, io, stack = loaded.module("backbone"), folder.need(*TRAINING), OmniGen2Stack()
    if not _is_omnigen2(loaded):
        yield NotChecked("native_forward_pred", "of another backbone than the checkpoint's")
        return
    images = [stack.cells(model.config, io, n, "") for n in ("noisy_video", "ref_image_latents")]
    length_b = valid_lengths(io, "text_attention_mask")
    timestep_b = jnp.asarray(io["timestep_video"], loaded.dtype)
    velocity = _forward(model, *images, io["text_hidden_states"], length_b, timestep_b)
    yield Output("native_forward_pred", stack.recorded(model.config, velocity), limits.VELOCITY)
    if "native_forward_two_refs_pred" in io:
        why = "its references are of two sizes; those of ours are of one"
        yield NotChecked("native_forward_two_refs_pred", why)


NATIVE = Kind(
    name="the transformer alone",
    part="backbone",
    file="train.safetensors",
    find=having(*NATIVE_SIGNATURE),
    outputs=_native_outputs,
    inputs=_inputs,
    case="policy",
)


def _moments_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """Mean and log-variance of the first frame, and the image that its latent is decoded to."""
    model, io = loaded.module("autoencoder"), folder.need("video")
    if not isinstance(model.config, AutoencoderKLConfig):
        yield NotChecked(MOMENTS.name, "of another autoencoder than the checkpoint's")
        return
    _, moments = encode(model, nhwc(io["video"][:, :, 0]))
    mean, log_variance = jnp.split(moments, 2, axis=-1)
    yield Output("vae_mean_first_frame", nchw(mean), limits.AUTOENCODER)
    yield Output("vae_logvar_first_frame", nchw(log_variance), limits.AUTOENCODER)
    if "ref_image_latents" in io:
        image = decode(model, OmniGen2Stack().latents(model.config, io, "ref_image_latents", ""))
        # The official policy clamps what it decodes; the autoencoder by itself does not.
        yield Output("vae_decoded_ref", nchw(np.clip(image, -1, 1)), limits.AUTOENCODER)


MOMENTS = Kind(
    name="the posterior of the first frame",
    part="autoencoder",
    file="train.safetensors",
    find=having(*MOMENTS_SIGNATURE),
    outputs=_moments_outputs,
    inputs=lambda loaded, *_: _inputs(loaded) if "autoencoder" in loaded else None,
    case="policy",
)
