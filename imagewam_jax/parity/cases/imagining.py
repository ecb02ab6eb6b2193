"""The image that a policy expects: every Euler step of its latent."""

from collections.abc import Iterator

import numpy as np

from imagewam_jax.models.imagewam import ImageWAM
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    Sizes,
    having,
    normal,
    run_once,
)
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import (
    as_grid,
    as_tokens,
    check_stack,
    recorded_context,
)

SIGNATURE = ("infer_video.noise",)

_imagine = run_once(ImageWAM.imagine)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    policy, io = loaded.module("policy"), folder.need(*SIGNATURE)
    check_stack(folder)
    context = recorded_context(policy.config, io, tokens="ref_tokens", prefix="infer0.")
    noise = as_grid(io["infer_video.noise"], context.references.shape[2:4])
    schedule = policy.target_schedule(folder.setting("infer.video_num_inference_steps"))
    _, trajectory = _imagine(policy, context, noise, schedule)
    states = as_tokens(np.asarray(trajectory.state)[:, 0])
    yield Output("infer_video.latents_per_step", states, limits.VELOCITY)


def _inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    channels = loaded.config("policy").backbone.in_channels
    return {"infer_video.noise": normal(rng, 1, sizes.grid[0] * sizes.grid[1], channels)}


KIND = Kind(
    name="a policy that imagines",
    part="policy",
    file="infer.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="policy",
)
