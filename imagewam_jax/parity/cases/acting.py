"""A policy that acts, and that imagines: its cache, and every Euler step."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float

from imagewam_jax.models.flow_matching import sampling_schedule
from imagewam_jax.models.imagewam import Cache, Context, ImageWAM
from imagewam_jax.models.layer_runner import run_layers
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
    as_grid,
    as_tokens,
    check_stack,
    recorded_context,
    recorded_samples,
    text_layout,
    with_images,
)

SIGNATURE = ("infer0.text_hidden_states", "infer0.noise")
IMAGINING_SIGNATURE = ("infer_video.noise",)
# Inputs of a training step that are named the same here.
SAME = ("text_hidden_states", "text_attention_mask", "ref_img_ids", "proprio")

_NOISE = ("batch", "steps", "dims")

_prefill = run_once(ImageWAM.prefill)
_act = run_once(ImageWAM.act)
_imagine = run_once(ImageWAM.imagine)


@run_once
def _last_state(policy: ImageWAM, context: Context) -> Float[Array, "b s d"]:
    """The tokens [reference | text] after the last layer of `ImageWAM.prefill`."""
    text, layout = policy.layout(context, None)
    time_b = jnp.zeros(len(text), policy.config.coordinate_dtype)
    (x, _), _ = run_layers(policy.backbone_stack(None, context.references, text, layout, time_b))
    return x


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    policy, io = loaded.module("policy"), folder.need(*SIGNATURE)
    config = policy.config
    check_stack(folder)
    schedule = policy.action_schedule(folder.setting("infer.num_inference_steps"))
    alternative = sampling_schedule(
        folder.setting("infer.alt_num_inference_steps"),
        folder.config["infer"].get("alt_sigma_shift") or config.action_flow.sample_shift,
        jnp.dtype(config.coordinate_dtype),
    )
    for prefix in recorded_samples(io):
        context = recorded_context(config, io, tokens="ref_tokens", prefix=prefix)
        positions = policy.backbone.reference_positions(context.references.shape[2:4])[None]
        yield Output(f"{prefix}ref_img_ids", positions, limits.EQUAL)

        cache = _prefill(policy, context)
        yield from _prefix(policy, context, cache, prefix)

        noise = check_axes(io.file, f"{prefix}noise", io[f"{prefix}noise"], *_NOISE)
        action, trajectory = _act(policy, cache, noise, schedule)
        yield Output(f"{prefix}timesteps_unit", schedule.time, limits.TIME)
        yield Output(f"{prefix}velocity_per_step", trajectory.velocity[:, 0], limits.VELOCITY)
        yield Output(f"{prefix}latents_per_step", trajectory.state[:, 0], limits.ACTION)
        yield Output(f"{prefix}action", action[0], limits.ACTION)
        other, _ = _act(policy, cache, noise, alternative)
        yield Output(f"{prefix}action_alt_schedule", other[0], limits.ACTION)


def _prefix(
    policy: ImageWAM, context: Context, cache: Cache, prefix: str
) -> Iterator[Output | NotChecked]:
    """Keys and values of every layer, heads side by side, and the tokens after the last one.

    Officially the channels of a key are in adjacent pairs, those that a rotation turns."""
    layout = text_layout(policy.config, context.text.shape[1], context.text_length)
    rows, columns = context.references.shape[2:4]

    def official(tokens: Float[Array, "1 s c"]) -> tuple[np.ndarray, np.ndarray]:
        reference, text = np.split(np.asarray(tokens), [rows * columns], axis=1)
        return layout(text), reference

    for kind, group in zip(("double", "single"), cache.groups, strict=True):
        for layer, (k, v) in enumerate(zip(*map(np.asarray, group), strict=True)):
            side_by_side = {
                "k": rearrange(k, "b s n (two pair) -> b s (n pair two)", two=2),
                "v": rearrange(v, "b s n h -> b s (n h)"),
            }
            for part, tokens in side_by_side.items():
                text, reference = official(tokens)
                tokens = np.concatenate([text, reference], axis=1)
                valid = with_images(layout.valid, reference)
                yield Output(f"{prefix}kv.{kind}.{layer}.{part}", tokens, limits.CACHE, valid)
    text, reference = official(_last_state(policy, context))
    yield Output(f"{prefix}prefix_final_img", reference, limits.VELOCITY)
    yield Output(f"{prefix}prefix_final_txt", text, limits.VELOCITY, layout.valid)


def _inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Each sample of the training step, by itself, and noise."""
    config, train = loaded.config("policy"), folder.need(*TRAINING)
    tensors = {}
    for i in range(sizes.batch):
        names = {name: name for name in SAME if name in train}
        names["ref_image_latents"] = "ref_tokens"
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
    check_stack(folder)
    context = recorded_context(policy.config, io, tokens="ref_tokens", prefix="infer0.")
    noise = as_grid(io["infer_video.noise"], context.references.shape[2:4])
    schedule = policy.target_schedule(folder.setting("infer.video_num_inference_steps"))
    _, trajectory = _imagine(policy, context, noise, schedule)
    states = as_tokens(np.asarray(trajectory.state)[:, 0])
    yield Output("infer_video.latents_per_step", states, limits.VELOCITY)


def _imagining_inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    channels = loaded.config("policy").backbone.in_channels
    return {"infer_video.noise": normal(rng, 1, sizes.grid[0] * sizes.grid[1], channels)}


IMAGINING = Kind(
    name="a policy that imagines",
    part="policy",
    file="infer.safetensors",
    find=having(*IMAGINING_SIGNATURE),
    outputs=_imagining_outputs,
    inputs=_imagining_inputs,
    case="policy",
)
