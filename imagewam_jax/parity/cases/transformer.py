"""The FLUX.2 transformer alone, as it edits and makes images, and its rotation tables.

Text, target and reference are one sequence, in which every token sees all others; the text has no
mask. A recording with LoRA is one of the same forward pass: adapters are merged when weights are
converted.
"""

from collections.abc import Iterator
from itertools import pairwise

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jaxtyping import Array, Float, Int

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.attention import attend_xla
from imagewam_jax.models.backbones.flux2 import Flux2, Flux2Config
from imagewam_jax.models.blocks import AttentionLayout
from imagewam_jax.models.layer_runner import Stack, run_layers
from imagewam_jax.models.layers import Rope, rope_tables
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
ROTATION_SIGNATURE = ("ids",)
MERGED = ("pred_lora", "pred_merged")


@run_once
def _forward(
    model: Flux2,
    images: list[Float[Array, "b _ c"]],
    text: Float[Array, "b t text_dim"],
    positions: Int[Array, "b s 4"],
    time_b: Float[Array, " b"],
) -> Float[Array, "b n c"]:
    """Velocities of the tokens of all images, which are a target and at most one reference."""
    target, *references = images
    condition = model.condition_at(time_b)
    layout = AttentionLayout(
        n_target=positions.shape[1],  # every token sees all others, as a target does
        n_text=text.shape[1],
        context_length_b=None,
        rope=model.rope_at(positions, time_b.dtype),
        attend=attend_xla,
    )
    references = references[0][:, None, None] if references else None
    tokens, condition = model.embed(target[:, None], references, text, condition, layout)
    (x, _), _ = run_layers(Stack(model, tokens, condition, layout))
    return model.predict(x[:, : x.shape[1] - text.shape[1]], condition)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    model, io = loaded.module("backbone"), folder.need(*SIGNATURE)
    check_flux2(loaded, io.file)
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
    config, b, model = loaded.config("backbone"), sizes.batch, loaded.module("backbone")
    tokens = (b, sizes.grid[0] * sizes.grid[1], config.in_channels)
    text = (b, sizes.text_tokens, config.text_dim)
    text_ids = np.zeros((*text[:2], 4), np.int64)
    text_ids[..., 3] = np.arange(sizes.text_tokens)
    return {
        "x": normal(rng, *tokens),
        "x_ids": image_ids(sizes, model.target_positions(sizes.grid)).astype(np.int64),
        "ref": normal(rng, *tokens),
        "ref_ids": image_ids(sizes, model.reference_positions(sizes.grid)).astype(np.int64),
        "ctx": normal(rng, *text),
        "ctx_ids": text_ids,
        "timesteps": rng.random(b, np.float32),
        "denoise_cfg.ctx_uncond": normal(rng, 1, *text[1:]),
        "schedule": np.linspace(1, 0, folder.setting("sampler.num_steps") + 1, dtype=np.float32),
    }


TRANSFORMER = Kind(
    name="transformer",
    part="backbone",
    file="io.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="transformer",
)


def _rotation_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """Rotation tables in each dtype that the official code computes them in: that of the positions,
    which a policy has in the dtype of its parameters.

    If they were recorded for wider heads than the checkpoint's, all axes are taken to be equally
    wide, as those of the full-size models are.
    """
    io, config = folder.need(*ROTATION_SIGNATURE), loaded.config("backbone")
    check_flux2(loaded, io.file)
    ids, pairs = io["ids"], config.head_dim // 2
    recorded = next((io.specs[name].shape[3] for name in io if name.startswith("pe_")), pairs)
    axes = config.rope_axes if recorded == pairs else (2 * recorded // 4,) * 4
    for ids_dtype, dtype, limit in (
        ("bfloat16", ml_dtypes.bfloat16, limits.EQUAL),
        ("float32", np.float32, limits.ROTATION),
        ("int64", np.float32, limits.ROTATION),
    ):
        tables = rotation_matrices(rope_tables(ids, axes, config.rope_theta, dtype))
        yield Output(f"pe_{ids_dtype}_ids", tables[:, None], limit)


def _rotation_inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Texts longer than bfloat16 can count, corners of images, and actions."""
    model = loaded.module("backbone")
    text = np.zeros((9, 4), np.int32)
    text[:, 3] = 0, 1, 7, 100, 255, 256, 257, 300, 511
    images = [model.target_positions((14, 28)), model.reference_positions((14, 28))]
    corners = [ids.reshape(14, 28, 4)[::13, ::27].reshape(-1, 4) for ids in images]
    actions = model.action_positions(16)[[0, 1, 15]]
    return {"ids": np.concatenate([text, *corners, actions])[None].astype(np.int32)}


def check_flux2(loaded: Loaded, file: str) -> None:
    """ConversionError: the checkpoint's transformer is another one."""
    if not isinstance(loaded.config("backbone"), Flux2Config):
        raise ConversionError(f"{file}: recorded of FLUX.2, the checkpoint is of another backbone")


def complex_factors(rope: Rope) -> tuple[Float[np.ndarray, "b s pairs"], ...]:
    """Real and imaginary parts of what each pair of channels is multiplied by."""
    # Both halves hold all angles; the sine is negative in the first.
    return tuple(np.split(np.asarray(table)[:, :, 0], 2, axis=-1)[1] for table in rope)


def rotation_matrices(rope: Rope) -> Float[np.ndarray, "b s pairs 2 2"]:
    """Our rotation tables in the form that the official code of FLUX.2 keeps them in."""
    cos, sin = complex_factors(rope)
    return np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)


ROTATION = Kind(
    name="rotation tables",
    part="backbone",
    file="rope.safetensors",
    find=having(*ROTATION_SIGNATURE),
    outputs=_rotation_outputs,
    inputs=_rotation_inputs,
    case="transformer",
)
