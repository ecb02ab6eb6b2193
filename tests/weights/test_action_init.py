"""First weights of the action expert, against what the official script makes."""

import math

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.action_expert import ActionExpert, ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import KLEIN_4B, KLEIN_9B, Flux2Config
from imagewam_jax.models.parameters import module_tree
from imagewam_jax.weights.io.tensors import ArraySource
from imagewam_jax.weights.layouts.action_init import FRESH, RECIPES, InitialExpert, initial_expert
from imagewam_jax.weights.layouts.flux2 import action_expert_rules
from imagewam_jax.weights.layouts.mapping import foreign_shapes
from tests.goldens import golden
from tests.models.official import config_of, flux2_config

TARGETS = ("narrow", "narrow_noalpha", "same_width_mlp4")


@pytest.fixture(scope="module")
def recorded():
    folder = golden("action_init")
    return folder, config_of(folder), load_file(folder / "flux2_weights.safetensors")


@pytest.mark.parametrize("target", TARGETS)
def test_initial_weights_as_recorded(recorded, target):
    folder, case, source = recorded
    assert set(case["targets"]) == set(TARGETS)
    settings = case["targets"][target]
    metadata = {
        "action_dit_config": settings["action_dit_config"],
        "expert_scale": settings["apply_alpha_scaling"],
    }
    backbone = flux2_config(case["flux2_params"])
    made = initial_expert(ArraySource(source, "file"), backbone, metadata, "official").source
    expert = {name: made.read(name) for name in made.specs}
    expected = load_file(folder / f"action_init_{target}.safetensors")
    assert expert.keys() == expected.keys()
    for name, tensor in expected.items():
        assert expert[name].shape == tensor.shape and expert[name].dtype == np.float32
        np.testing.assert_allclose(expert[name], tensor, atol=5e-5, rtol=0, err_msg=name)

    copied = {name for name in expert if source[name].shape == expert[name].shape}
    assert (len(copied), len(expert) - len(copied)) == (settings["copied"], settings["resized"])
    for name in copied:
        np.testing.assert_array_equal(expert[name], source[name], err_msg=name)


def test_the_aligned_recipe_mixes_no_bands(recorded):
    """Each band of a fused matrix holds a number of its own, on both axes."""
    _, case, source = recorded
    backbone = flux2_config(case["flux2_params"])
    bands = {"single_blocks.0.linear1.weight": (0, [48, 48, 48, 144, 144], [48, 48, 48, 128, 128])}
    bands["single_blocks.1.linear2.weight"] = (1, [48, 144], [48, 128])
    bands["double_blocks.0.img_attn.qkv.weight"] = (0, [48] * 3, [48] * 3)
    bands["double_blocks.1.img_mlp.0.weight"] = (0, [144, 144], [128, 128])
    bands["double_stream_modulation_img.lin.weight"] = (0, [48] * 6, [32] * 6)
    bands["single_stream_modulation.lin.weight"] = (0, [48] * 3, [32] * 3)
    filled = dict(source)
    for name, (axis, old, _) in bands.items():
        numbers = np.repeat(np.arange(len(old), dtype=np.float32), old)
        filled[name] = np.broadcast_to(np.expand_dims(numbers, 1 - axis), source[name].shape)
    metadata = {"expert_dim": 32, "expert_scale": False}
    mixed = {recipe: set() for recipe in RECIPES}
    for recipe in RECIPES:
        made = initial_expert(ArraySource(filled, "file"), backbone, metadata, recipe).source
        for name, (axis, old, new) in bands.items():
            numbers = np.repeat(np.arange(len(old), dtype=np.float32), new)
            expected = np.broadcast_to(np.expand_dims(numbers, 1 - axis), made.specs[name].shape)
            if not np.allclose(made.read(name), expected, atol=1e-6):
                mixed[recipe].add(name)
    assert not mixed["aligned"]
    # Bands of equal widths on both sides happen not to meet.
    assert mixed["official"] >= {name for name in bands if "linear" in name}


def test_the_aligned_recipe_differs_only_where_bands_are(recorded):
    _, case, source = recorded
    backbone = flux2_config(case["flux2_params"])
    made = [
        initial_expert(ArraySource(source, "file"), backbone, {"expert_dim": 32}, recipe).source
        for recipe in RECIPES
    ]
    for name, tensor in ((n, source[n]) for n in made[0].specs):
        official, aligned = (m.read(name) for m in made)
        has_bands = tensor.shape != official.shape and name.endswith(
            ("lin.weight", "linear1.weight", "linear2.weight", "mlp.0.weight")
        )
        assert np.array_equal(official, aligned) is not has_bands, name


# docs/spec/imagewam_flux2.md, 4.3: in FLUX.2, in the expert, scale; 4B, then 9B.
FULL_SIZE = {
    "time_in.in_layer": [
        ((3072, 256), (1024, 256), 1),
        ((4096, 256), (1024, 256), 1),
    ],
    "time_in.out_layer": [
        ((3072, 3072), (1024, 1024), math.sqrt(3)),
        ((4096, 4096), (1024, 1024), 2),
    ],
    "double_stream_modulation_img.lin": [
        ((18432, 3072), (6144, 1024), math.sqrt(3)),
        ((24576, 4096), (6144, 1024), 2),
    ],
    "single_stream_modulation.lin": [
        ((9216, 3072), (3072, 1024), math.sqrt(3)),
        ((12288, 4096), (3072, 1024), 2),
    ],
    "double_blocks.0.img_attn.qkv": [
        ((9216, 3072), (9216, 1024), math.sqrt(3)),
        ((12288, 4096), (12288, 1024), 2),
    ],
    "double_blocks.0.img_attn.proj": [
        ((3072, 3072), (1024, 3072), 1),
        ((4096, 4096), (1024, 4096), 1),
    ],
    "double_blocks.0.img_mlp.0": [
        ((18432, 3072), (8192, 1024), math.sqrt(3)),
        ((24576, 4096), (8192, 1024), 2),
    ],
    "double_blocks.0.img_mlp.2": [
        ((3072, 9216), (1024, 4096), 1.5),
        ((4096, 12288), (1024, 4096), math.sqrt(3)),
    ],
    "single_blocks.0.linear1": [
        ((27648, 3072), (17408, 1024), math.sqrt(3)),
        ((36864, 4096), (20480, 1024), 2),
    ],
    "single_blocks.0.linear2": [
        ((3072, 12288), (1024, 7168), 1.309307),
        ((4096, 16384), (1024, 8192), math.sqrt(2)),
    ],
}


@pytest.mark.parametrize(
    ("backbone", "column", "copied", "resized", "parameters"),
    [(KLEIN_4B, 0, 50, 64, 642_012_416), (KLEIN_9B, 1, 64, 84, 952_392_704)],
)
def test_full_size_shapes(backbone, column, copied, resized, parameters):
    shapes = expert_shapes(ActionExpertConfig(action_dim=7), backbone)
    assert shapes.keys() >= {f"{name}.weight" for name in FULL_SIZE}
    for name, columns in FULL_SIZE.items():
        source, target, alpha = columns[column]
        assert shapes[f"{name}.weight"] == target, name
        factor = math.sqrt(source[-1] / target[-1]) if source[-1] != target[-1] else 1
        assert factor == pytest.approx(alpha, abs=1e-6), name
    assert len(shapes) == copied + resized + 4
    fresh = {"action_encoder.weight", "action_encoder.bias", "head.linear.weight"}
    fresh.add("head.adaLN_modulation.1.weight")
    assert {name for name in shapes if name.startswith(FRESH)} == fresh
    assert sum(name.endswith("_norm.scale") for name in shapes) == copied
    assert sum(math.prod(shape) for shape in shapes.values()) == parameters


def test_a_missing_source_tensor_is_named(recorded):
    _, case, source = recorded
    name = "single_blocks.1.linear1.weight"
    without = ArraySource({k: v for k, v in source.items() if k != name}, "file")
    with pytest.raises(ConversionError, match=f"the transformer.s weights have no {name}"):
        initial_expert(without, flux2_config(case["flux2_params"]), {"expert_dim": 32}, "official")


def test_an_unknown_recipe(recorded):
    _, case, source = recorded
    with pytest.raises(ConversionError, match=r"unknown recipe 'best'; choose from .*aligned"):
        initial_expert(ArraySource(source, "f"), flux2_config(case["flux2_params"]), {}, "best")


def resized(source: np.ndarray, name: str, shape: tuple[int, ...], **options) -> np.ndarray:
    return InitialExpert(ArraySource({name: source}, "file"), {name: shape}, **options).read(name)


def test_bfloat16_weights_are_rounded_before_they_are_scaled():
    source = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6).astype(ml_dtypes.bfloat16)
    name = "time_in.out_layer.weight"
    plain = resized(source, name, (3, 4), scale=False)
    scaled = resized(source, name, (3, 4))
    np.testing.assert_array_equal(plain, plain.astype(ml_dtypes.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(scaled, plain * np.float32(math.sqrt(6 / 4)))
    assert (scaled != scaled.astype(ml_dtypes.bfloat16).astype(np.float32)).any()


def test_interpolation_keeps_both_ends_and_lines():
    source = np.arange(7, dtype=np.float32)[:, None] * np.array([[1, 10]], np.float32)
    for size in (1, 3, 7, 13):
        found = resized(source, "time_in.in_layer.weight", (size, 2))
        line = np.linspace(0, 6 if size > 1 else 0, size)
        np.testing.assert_allclose(found, line[:, None] * [[1, 10]], atol=1e-5)


def expert_shapes(config: ActionExpertConfig, backbone: Flux2Config) -> dict[str, tuple[int, ...]]:
    """Shapes of all expert tensors in the official layout."""
    model = jax.eval_shape(
        lambda: ActionExpert(
            config,
            heads=backbone.heads,
            head_dim=backbone.head_dim,
            group_sizes=backbone.group_sizes,
            rngs=nnx.Rngs(0),
        )
    )
    return foreign_shapes(action_expert_rules(config, backbone), module_tree(model))
