"""A policy that acts: its cache, and every Euler step."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from imagewam_jax.models.backbones.flux2 import REFERENCE_TIME, image_positions
from imagewam_jax.models.flow_matching import sampling_schedule
from imagewam_jax.models.imagewam import Cache, Context, ImageWAM
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
    TRAINING,
    as_tokens,
    check_stack,
    recorded_context,
    recorded_samples,
    text_layout,
    with_images,
)

SIGNATURE = ("infer0.text_hidden_states", "infer0.noise")
SAME = ("text_hidden_states", "text_attention_mask", "ref_img_ids", "proprio")

_prefill = run_once(ImageWAM.prefill)
_act = run_once(ImageWAM.act)


@run_once
def _last_state(policy: ImageWAM, context: Context) -> Float[Array, "b s d"]:
    """The tokens [reference | text] after the last layer of `ImageWAM.prefill`."""
    text, layout = policy.layout(context, None)
    backbone = policy.backbone
    condition = backbone.condition(jnp.zeros(len(text), policy.config.coordinate_dtype))
    x = backbone.embed([as_tokens(context.references)], text)
    for layers, on in zip(backbone.groups, backbone.group_conditions(condition), strict=True):
        x, _ = jax.lax.scan(lambda x, layer, on=on: (layer(x, on, layout)[0], None), x, layers)
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
        positions = image_positions(context.references.shape[2:4], REFERENCE_TIME)[None]
        yield Output(f"{prefix}ref_img_ids", positions, limits.EQUAL)

        cache = _prefill(policy, context)
        yield from _prefix(policy, context, cache, prefix)

        noise = io[f"{prefix}noise"]
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
    """Keys and values of every layer, heads side by side, and the state after the last one."""
    layout = text_layout(policy.config, context.text.shape[1], context.text_length)
    rows, columns = context.references.shape[2:4]

    def official(tokens: Float[Array, "1 s c"]) -> tuple[np.ndarray, np.ndarray]:
        reference, text = np.split(np.asarray(tokens), [rows * columns], axis=1)
        return layout(text), reference

    for kind, group in zip(("double", "single"), cache.groups, strict=True):
        for layer, (k, v) in enumerate(zip(*map(np.asarray, group), strict=True)):
            for part, tokens in (("k", k), ("v", v)):
                text, reference = official(tokens.reshape(*tokens.shape[:2], -1))
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


KIND = Kind(
    name="a policy that acts",
    part="policy",
    file="infer.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="policy",
)
