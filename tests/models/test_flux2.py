"""The transformer alone, against recorded runs of the official one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagewam_jax.models.attention import attend_xla
from imagewam_jax.models.backbones.flux2 import Flux2
from imagewam_jax.models.blocks import AttentionLayout
from imagewam_jax.models.layer_runner import Stack, run_layers
from imagewam_jax.models.layers import rope_tables
from imagewam_jax.weights.io.tensors import ArraySource
from imagewam_jax.weights.layouts.lora import MergedLora
from tests.goldens import golden
from tests.models.official import config_of, load_flux2


@jax.jit
def stock_forward(model: Flux2, images, text, positions, time):
    """The unmasked FLUX.2 forward: every token is one that sees all others."""
    condition = model.condition(jnp.asarray(time))
    layout = AttentionLayout(
        n_target=positions.shape[1],
        n_text=text.shape[1],
        context_length_b=None,
        rope=model.rope_at(positions, jnp.float32),
        attend=attend_xla,
    )
    target, reference = (*images, None)[:2]
    references = None if reference is None else reference[:, None, None]
    tokens = model.embed(target[:, None], references, text, condition, layout)
    (x, _), _ = run_layers(Stack(model, tokens, condition, layout))
    return model.predict(x[:, : x.shape[1] - text.shape[1]], condition)


@pytest.fixture(scope="module")
def recorded():
    """The folder of the recorded transformer, our model of it, and the recorded tensors."""
    folder = golden("flux2_transformer")
    model = load_flux2(folder, load_file(folder / "weights.safetensors"))
    return folder, model, load_file(folder / "io.safetensors")


def test_editing_and_text_to_image(recorded):
    _, model, io = recorded
    n_target = io["x"].shape[1]

    positions = np.concatenate([io["x_ids"], io["ref_ids"], io["ctx_ids"]], 1)
    edited = stock_forward(model, [io["x"], io["ref"]], io["ctx"], positions, io["timesteps"])
    np.testing.assert_allclose(edited, io["pred_with_ref_all_tokens"], atol=5e-5, rtol=0)
    np.testing.assert_allclose(edited[:, :n_target], io["pred_with_ref"], atol=5e-5, rtol=0)

    positions = np.concatenate([io["x_ids"], io["ctx_ids"]], 1)
    generated = stock_forward(model, [io["x"]], io["ctx"], positions, io["timesteps"])
    np.testing.assert_allclose(generated, io["pred_without_ref"], atol=5e-5, rtol=0)


def test_classifier_free_guidance_loop(recorded):
    folder, model, io = recorded
    guidance = config_of(folder)["sampler"]["guidance_scale"]
    x, ref = io["x"][:1], io["ref"][:1]
    positions = np.concatenate([io["x_ids"], io["ref_ids"], io["ctx_ids"]], 1)[:1]
    schedule = io["schedule"]
    for now, after in itertools.pairwise(schedule):
        both = [
            stock_forward(model, [x, ref], text, positions, now[None])[:, : x.shape[1]]
            for text in (io["denoise_cfg.ctx_uncond"], io["ctx"][:1])
        ]
        x = x + (after - now) * (both[0] + guidance * (both[1] - both[0]))
    np.testing.assert_allclose(x, io["denoise_cfg.final"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("ids_dtype", "dtype", "limit"),
    [("bfloat16", "bfloat16", 0.0), ("float32", "float32", 5e-5), ("int64", "float32", 5e-5)],
)
def test_rope_tables(ids_dtype, dtype, limit):
    io = load_file(golden("flux2_transformer") / "rope.safetensors")
    rope = rope_tables(io["ids"], (32, 32, 32, 32), 2000.0, dtype)
    expected = io[f"pe_{ids_dtype}_ids"][:, 0]  # [b, s, pair, 2, 2], a rotation matrix each
    np.testing.assert_allclose(rope.cos[:, :, 0, ::2], expected[..., 0, 0], atol=limit, rtol=0)
    np.testing.assert_allclose(rope.sin[:, :, 0, ::2], expected[..., 1, 0], atol=limit, rtol=0)
    np.testing.assert_array_equal(rope.cos[..., ::2], rope.cos[..., 1::2])
    np.testing.assert_array_equal(rope.sin[..., ::2], rope.sin[..., 1::2])


def test_a_position_without_a_table_entry_is_not_silent():
    rope = rope_tables(np.full((1, 1, 1), 5000), (8,), 2000.0, jnp.float32)
    assert jnp.isnan(rope.cos).all()


@pytest.mark.parametrize("case", ["lora", "lora_alpha"])
def test_merged_lora(case):
    folder = golden(case)
    io = load_file(folder / "io.safetensors")
    expected = load_file(folder / "lora_merged.safetensors")
    unmerged = ArraySource(load_file(folder / "lora_unmerged.safetensors"), case)
    source = MergedLora(unmerged, config_of(folder)["alpha"])
    assert source.specs.keys() == expected.keys()
    merged = {name: source.read(name) for name in source.specs}
    for name, tensor in expected.items():
        np.testing.assert_allclose(merged[name], tensor, atol=1e-6, rtol=0, err_msg=name)

    positions = np.concatenate([io["x_ids"], io["ctx_ids"]], 1)
    prediction = stock_forward(
        load_flux2(folder, merged), [io["x"]], io["ctx"], positions, io["timesteps"]
    )
    np.testing.assert_allclose(prediction, io["pred_lora"], atol=5e-5, rtol=0)
    np.testing.assert_allclose(prediction, io["pred_merged"], atol=5e-5, rtol=0)
