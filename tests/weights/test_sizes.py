"""Sizes that follow from the shapes of foreign tensors."""

import json

import jax
import pytest
from flax import nnx

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.action_expert import ActionExpert, ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import Flux2, Flux2Config
from imagewam_jax.models.parameters import module_tree
from imagewam_jax.weights.layouts.flux2 import (
    action_expert_rules,
    exact_ratio,
    expert_config,
    flux2_config,
    flux2_rules,
    mlp_ratio,
)
from imagewam_jax.weights.layouts.flux2_diffusers import (
    flux2_diffusers_config,
    flux2_diffusers_json,
    flux2_diffusers_rules,
)
from imagewam_jax.weights.layouts.mapping import check, foreign_shapes
from imagewam_jax.weights.layouts.qwen3 import qwen3_config
from tests.weights.foreign import specs_of

# 3904 / 1792 * 1792 is 3903.9999999999995.
WIDE, INNER = 1792, 3904
SMALL = {"in_channels": 4, "text_dim": 6, "double_layers": 1, "single_layers": 1}
CONFIG = Flux2Config(
    **SMALL, dim=WIDE, heads=112, mlp_ratio=INNER / WIDE, rope_axes=(4, 4, 4, 4), rope_theta=2000
)
ROPE = {"rope_axes": [4, 4, 4, 4], "rope_theta": 2000}


def backbone(config):
    return jax.eval_shape(lambda: module_tree(Flux2(config, rngs=nnx.Rngs(0))))


LAYOUTS = [(flux2_config, flux2_rules), (flux2_diffusers_config, flux2_diffusers_rules)]


@pytest.mark.parametrize(("config_of", "rules"), LAYOUTS)
def test_a_width_that_its_ratio_misses_by_rounding(config_of, rules):
    assert int(WIDE * CONFIG.mlp_ratio) == INNER - 1 and CONFIG.mlp_dim == INNER
    specs = specs_of(foreign_shapes(rules(CONFIG), backbone(CONFIG)))
    assert INNER in {size for spec in specs.values() for size in spec.shape}
    config = config_of(specs, ROPE)
    assert config.mlp_dim == INNER
    check(rules(config), specs, backbone(config), "file")
    # Other code truncates the width that the ratio gives.
    written = json.loads(json.dumps(flux2_diffusers_json(config)))
    assert int(WIDE * written["mlp_ratio"]) == INNER
    again = config_of(specs, {**ROPE, "mlp_ratio": written["mlp_ratio"]})
    assert again == config


def test_an_expert_of_such_a_width():
    config = ActionExpertConfig(dim=WIDE, mlp_ratio=INNER / WIDE)

    def abstract(config):
        sizes = {"heads": 112, "head_dim": 16, "group_sizes": CONFIG.group_sizes}
        return jax.eval_shape(lambda: module_tree(ActionExpert(config, **sizes, rngs=nnx.Rngs(0))))

    specs = specs_of(foreign_shapes(action_expert_rules(config, CONFIG), abstract(config)))
    assert specs["double_blocks.0.img_mlp.2.weight"].shape == (WIDE, INNER)
    found = expert_config(specs, {})
    assert (found.mlp_dim, int(WIDE * found.mlp_ratio)) == (INNER, INNER)
    check(action_expert_rules(found, CONFIG), specs, abstract(found), "file")


def test_every_width_has_a_ratio():
    for dim in (7, 49, 1000, 1792, 3072, 4096):
        for inner in range(dim, 5 * dim, max(1, dim // 300)):
            ratio = mlp_ratio(inner, dim)
            assert int(dim * ratio) == inner
            assert ActionExpertConfig(dim=dim, mlp_ratio=ratio).mlp_dim == inner
            assert ActionExpertConfig(dim=dim, mlp_ratio=inner / dim).mlp_dim == inner
    assert mlp_ratio(9216, 3072) == 3.0


@pytest.mark.parametrize(("given", "agrees"), [(2.6, True), (2.599609375, True), (2.61, False)])
def test_a_ratio_of_a_config_need_not_be_exact(given, agrees):
    """1024 * 2.6 is 2662.4, which the official code truncates to 2662."""
    assert (exact_ratio(given, 2662, 1024) == mlp_ratio(2662, 1024)) is agrees
    specs = specs_of(foreign_shapes(flux2_rules(CONFIG), backbone(CONFIG)))
    given = {"mlp_ratio": 2.2}
    with pytest.raises(ConversionError, match=r"flux2_params: mlp_ratio is given as 2\.2, the sha"):
        flux2_config(specs, {**ROPE, "flux2_params": given})


@pytest.mark.parametrize("given", ["3", None, [3.0], float("nan"), float("inf")])
def test_a_ratio_that_is_none(given):
    assert exact_ratio(given, 2662, 1024) is given


@pytest.mark.parametrize("section", [[1], "klein", 3])
def test_a_section_that_is_none(section):
    specs = specs_of(foreign_shapes(flux2_rules(CONFIG), backbone(CONFIG)))
    with pytest.raises(ConversionError, match=r"flux2_params is .*, expected a section"):
        flux2_config(specs, {**ROPE, "flux2_params": section})


def test_rope_axes_that_are_no_list():
    specs = specs_of(foreign_shapes(flux2_rules(CONFIG), backbone(CONFIG)))
    with pytest.raises(ConversionError, match=r"FLUX\.2 transformer: .*int.* not iterable"):
        flux2_config(specs, {"flux2_params": {"axes_dim": 16, "theta": 2000}})


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([18, 9], r"feature_layers \(18, 9\) must be ascending"),
        ([], "must be ascending"),
        ([0, 1], "must be ascending"),
        (9, "feature_layers is 9, expected numbers"),
        ("9,18", "feature_layers is '9,18', expected numbers"),
        ([9, "18"], r"feature_layers is \[9, '18'\], expected numbers"),
        ([9, 18.0], r"feature_layers is \[9, 18\.0\], expected numbers"),
    ],
)
def test_layers_that_text_features_cannot_be_taken_after(layers, message):
    shapes = {
        "model.embed_tokens.weight": (32, 8),
        "model.layers.0.self_attn.q_norm.weight": (4,),
        "model.layers.0.self_attn.q_proj.weight": (8, 8),
        "model.layers.0.self_attn.k_proj.weight": (4, 8),
        "model.layers.0.mlp.gate_proj.weight": (16, 8),
        "model.layers.30.mlp.gate_proj.weight": (16, 8),
    }
    specs = specs_of(shapes)
    metadata = {"rope_theta": 1e6}
    assert qwen3_config(specs, {**metadata, "feature_layers": [1, 3]}).feature_layers == (1, 3)
    with pytest.raises(ConversionError, match=message):
        qwen3_config(specs, {**metadata, "feature_layers": layers})
