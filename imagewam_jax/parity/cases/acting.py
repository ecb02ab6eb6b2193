"""A policy that acts, and that imagines: its cache, and every Euler step."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from imagewam_jax.models.flow_matching import sampling_schedule
from imagewam_jax.models.imagewam import ImageWAM
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    Sizes,
    check_axes,
    having,
    normal,
    run_once,
)
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import (
    TRAINING,
    recorded_context,
    recorded_samples,
)
from imagewam_jax.parity.stacks import checked_stack, stack_of

SIGNATURE = ("infer0.text_hidden_states", "infer0.noise")
IMAGINING_SIGNATURE = ("infer_video.noise",)
# Inputs of a training step that are named the same here.
SAME = ("text_hidden_states", "text_attention_mask", "ref_img_ids", "proprio")
NOISE = "eps_ref"  # the noise of the reference's posterior, in recordings that sample it

_NOISE = ("batch", "steps", "dims")

_prefill = run_once(ImageWAM.prefill)
_act = run_once(ImageWAM.act)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    policy, io = loaded.module("policy"), folder.need(*SIGNATURE)
    config = policy.config
    stack = checked_stack(folder, config.backbone)
    schedule = policy.action_schedule(folder.setting("infer.num_inference_steps"))
    alternative = sampling_schedule(
        folder.setting("infer.alt_num_inference_steps"),
        folder.config["infer"].get("alt_sigma_shift") or config.action_flow.sample_shift,
        jnp.dtype(config.coordinate_dtype),
    )
    for prefix in recorded_samples(io):
        context = recorded_context(stack, config, io, image=stack.reference, prefix=prefix)
        cache = _prefill(policy, context)
        text = stack.text_layout(config, context.text.shape[1], context.text_length)
        yield from stack.acting_outputs(policy, context, cache, text, prefix)

        noise = check_axes(io.file, f"{prefix}noise", io[f"{prefix}noise"], *_NOISE)
        action, trajectory = _act(policy, cache, noise, schedule)
        times = stack.network_time(schedule.timestep)
        yield Output(f"{prefix}{stack.acting_times}", times, limits.TIME)
        yield Output(f"{prefix}velocity_per_step", trajectory.velocity[:, 0], limits.VELOCITY)
        yield Output(f"{prefix}latents_per_step", trajectory.state[:, 0], limits.ACTION)
        yield Output(f"{prefix}action", action[0], limits.ACTION)
        other, _ = _act(policy, cache, noise, alternative)
        yield Output(f"{prefix}action_alt_schedule", other[0], limits.ACTION)


def _inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Each sample of the training step, by itself, and noise."""
    config, train = loaded.config("policy"), folder.need(*TRAINING)
    tensors = {}
    for i in range(sizes.batch):
        names = {name: name for name in SAME if name in train}
        names["ref_image_latents"] = stack_of(config.backbone).reference
        names |= {NOISE: "eps_vae"} if NOISE in train else {}
        tensors |= {f"infer{i}.{new}": train[old][i : i + 1] for old, new in names.items()}
        shape = (1, config.horizon, config.expert.action_dim)
        tensors[f"infer{i}.noise"] = normal(rng, *shape)
        if "video" in train:
            tensors[f"infer{i}.image"] = train["video"][i : i + 1, :, 0]
    return tensors


ACTING = Kind(
    name="a policy that acts",
    part="policy",
    file="infer.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="policy",
)


def _imagining_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """The latent of the expected image after every Euler step."""
    policy, io = loaded.module("policy"), folder.need(*IMAGINING_SIGNATURE)
    config = policy.config
    stack = checked_stack(folder, config.backbone)
    reference = stack.imagined_reference(loaded, io)
    if reference is None:
        yield NotChecked("infer_video.latents_per_step", "needs the autoencoder of the recording")
        return
    context = recorded_context(stack, config, io, image=stack.reference, prefix="infer0.")
    context = context._replace(references=reference[:, None])
    noise = stack.cells(config.backbone, io, "infer_video.noise", "infer0.ref_img_ids")
    schedule = policy.target_schedule(folder.setting("infer.video_num_inference_steps"))
    states = stack.imagined(policy, context, noise, schedule)[:, 0]
    states = stack.recorded(config.backbone, states)
    yield Output("infer_video.latents_per_step", states, limits.VELOCITY)


def _imagining_inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    backbone = loaded.config("policy").backbone
    cells = normal(rng, 1, *sizes.grid, backbone.in_channels)
    return {"infer_video.noise": stack_of(backbone).recorded(backbone, cells)}


IMAGINING = Kind(
    name="a policy that imagines",
    part="policy",
    file="infer.safetensors",
    find=having(*IMAGINING_SIGNATURE),
    outputs=_imagining_outputs,
    inputs=_imagining_inputs,
    case="policy",
)
