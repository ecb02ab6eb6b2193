"""The transformer alone, as it edits and makes images: text, target and reference in one sequence.

Its text has no mask, and everything sees everything. A recording with LoRA is of the same
forward: adapters are merged when weights are converted.
"""

from collections.abc import Iterator
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.attention import attend_xla
from imagewam_jax.models.backbones.flux2 import REFERENCE_TIME, TARGET_TIME, Flux2
from imagewam_jax.models.blocks import AttentionLayout
from imagewam_jax.models.layers import rope_tables
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    Sizes,
    check_width,
    having,
    image_ids,
    normal,
    run_once,
)
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded

SIGNATURE = ("x", "x_ids", "ctx", "ctx_ids", "timesteps")
MERGED = ("pred_lora", "pred_merged")


@run_once
def _forward(
    model: Flux2,
    images: list[Float[Array, "b _ c"]],
    text: Float[Array, "b t text_dim"],
    positions: Int[Array, "b s 4"],
    time_b: Float[Array, " b"],
) -> Float[Array, "b n c"]:
    """Velocities of all image tokens."""
    x, condition = model.embed(images, text), model.condition(time_b)
    config, dtype = model.config, time_b.dtype
    layout = AttentionLayout(
        n_target=x.shape[1],
        n_text=text.shape[1],
        context_length_b=None,
        rope=rope_tables(positions, config.rope_axes, config.rope_theta, dtype),
        attend=attend_xla,
    )
    for layers, on in zip(model.groups, model.group_conditions(condition), strict=True):
        x, _ = jax.lax.scan(lambda x, layer, on=on: (layer(x, on, layout)[0], None), x, layers)
    return model.predict(x[:, : x.shape[1] - text.shape[1]], condition)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    model, io = loaded.module("backbone"), folder.need(*SIGNATURE)
    if "guidance" in io:
        raise ConversionError(f"{io.file}: recorded with a guidance embedding, which klein has not")
    x, text, time_b = io["x"], io["ctx"], jnp.asarray(io["timesteps"], loaded.dtype)
    check_width(io.file, "x", x.shape[-1], model.config.in_channels, "transformer")
    check_width(io.file, "ctx", text.shape[-1], model.config.text_dim, "transformer")
    if "ref" in io:
        images = [x, io["ref"]]
        positions = np.concatenate([io[f"{n}_ids"] for n in ("x", "ref", "ctx")], axis=1)
        edited = _forward(model, images, text, positions, time_b)
        yield Output("pred_with_ref_all_tokens", edited, limits.VELOCITY)
        yield Output("pred_with_ref", edited[:, : x.shape[1]], limits.VELOCITY)
        if "denoise_cfg.ctx_uncond" in io:
            final = _guided(loaded, folder, [image[:1] for image in images], positions[:1])
            yield Output("denoise_cfg.final", final, limits.VELOCITY)
    positions = np.concatenate([io["x_ids"], io["ctx_ids"]], axis=1)
    generated = _forward(model, [x], text, positions, time_b)
    for name in [name for name in MERGED if name in io] or ["pred_without_ref"]:
        yield Output(name, generated, limits.VELOCITY)


def _guided(
    loaded: Loaded,
    folder: Folder,
    images: list[Float[np.ndarray, "1 _ c"]],
    positions: Int[np.ndarray, "1 s 4"],
) -> Float[Array, "1 n c"]:
    """The first sample through the official loop of classifier-free guidance."""
    model, io = loaded.module("backbone"), folder.need(*SIGNATURE)
    scale = folder.setting("sampler.guidance_scale")
    text = np.concatenate([io["denoise_cfg.ctx_uncond"], io["ctx"][:1]])
    x, *references = (np.repeat(image, 2, axis=0) for image in images)
    positions = np.repeat(positions, 2, axis=0)
    for now, after in pairwise(io["schedule"]):
        time_b = jnp.full(2, now, loaded.dtype)
        velocity = _forward(model, [x, *references], text, positions, time_b)[:, : x.shape[1]]
        without, told = velocity[:1], velocity[1:]
        x = x + (after - now) * (without + scale * (told - without))
    return x[:1]


def _inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    config, b = loaded.config("backbone"), sizes.batch
    tokens = (b, sizes.grid[0] * sizes.grid[1], config.in_channels)
    text = (b, sizes.text_tokens, config.text_dim)
    text_ids = np.zeros((*text[:2], 4), np.int64)
    text_ids[..., 3] = np.arange(sizes.text_tokens)
    return {
        "x": normal(rng, *tokens),
        "x_ids": image_ids(sizes, TARGET_TIME).astype(np.int64),
        "ref": normal(rng, *tokens),
        "ref_ids": image_ids(sizes, REFERENCE_TIME).astype(np.int64),
        "ctx": normal(rng, *text),
        "ctx_ids": text_ids,
        "timesteps": rng.random(b, np.float32),
        "denoise_cfg.ctx_uncond": normal(rng, 1, *text[1:]),
        "schedule": np.linspace(1, 0, folder.setting("sampler.num_steps") + 1, dtype=np.float32),
    }


KIND = Kind(
    name="transformer",
    part="backbone",
    file="io.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="transformer",
)
