"""Ovis-U1 and its autoencoder in the layouts of others, and back."""

import contextlib
import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import ConversionError
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.autoencoders.kl import SDXL
from imagewam_jax.models.backbones.ovis_u1 import OVIS_U1, OvisU1Config
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import abstract_params
from imagewam_jax.weights.components import COMPONENTS
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.export import export
from imagewam_jax.weights.io.tensors import TensorSpec
from imagewam_jax.weights.layouts.autoencoder_kl import (
    autoencoder_kl_config,
    autoencoder_kl_rules,
)
from imagewam_jax.weights.layouts.imagewam import (
    BACKBONE,
    EXPERT,
    alias_names,
    imagewam_config,
    imagewam_rules,
)
from imagewam_jax.weights.layouts.imagewam_checkpoint import official_settings
from imagewam_jax.weights.layouts.imagewam_settings import check_settings
from imagewam_jax.weights.layouts.mapping import check, foreign_shapes
from imagewam_jax.weights.layouts.ovis_u1 import initial_expert_config
from imagewam_jax.weights.plan import recognize_source
from tests.goldens import golden
from tests.models.official import config_of
from tests.parity.recordings import converted
from tests.weights.foreign import official_specs

CASE = "imagewam_ovis_u1"
RELEASED = ImageWAMConfig(OVIS_U1, ActionExpertConfig(dim=1536), proprio_dim=8)


@pytest.fixture(scope="module")
def released():
    return official_specs(RELEASED)


def test_the_names_at_full_size(released):
    """docs/spec/imagewam_ovis_u1.md, 6, 7 and 11."""
    backbone = [name for name in released if name.startswith(BACKBONE)]
    expert = [name for name in released if name.startswith(EXPERT)]
    aliases = alias_names(RELEASED)
    assert (len(backbone), len(expert), len(aliases)) == (325, 286, 180 + 96)
    alias = "mot.mixtures.video.double_blocks.5.img_self_attn.proj.bias"
    assert aliases[alias] == f"{BACKBONE}double_blocks.5.img_self_attn.proj.bias"
    for name, shape in (
        (f"{BACKBONE}img_in.weight", (1536, 16)),
        (f"{BACKBONE}vector_in.in_layer.weight", (1536, 1536)),
        (f"{BACKBONE}txt_in.cls_token", (1, 1, 1536)),
        (f"{BACKBONE}txt_in.individual_token_refiner.blocks.1.self_attn_qkv.bias", (4608,)),
        (f"{BACKBONE}double_blocks.5.img_mod.lin.weight", (13824, 1536)),
        (f"{BACKBONE}double_blocks.0.txt_mod.lin.bias", (9216,)),
        (f"{BACKBONE}double_blocks.0.img_self_attn.norm.key_norm.scale", (128,)),
        (f"{BACKBONE}single_blocks.11.linear1.weight", (10752, 1536)),
        (f"{BACKBONE}single_blocks.11.linear2.weight", (1536, 7680)),
        (f"{BACKBONE}final_layer.adaLN_modulation.1.weight", (3072, 1536)),
        (f"{EXPERT}double_blocks.5.txt_mlp.2.weight", (1536, 6144)),
        (f"{EXPERT}head.linear.bias", (7,)),
        ("proprio_encoder.weight", (4096, 8)),
    ):
        assert released[name].shape == shape, name


def test_the_released_sizes_need_no_settings(released):
    found = imagewam_config(released, {"coordinate_dtype": "float32"})
    assert found == RELEASED
    check(imagewam_rules(found), released, abstract_params(found), "model.pt")


@pytest.mark.parametrize(
    ("changes", "expert"),
    [
        (
            {"heads": 6, "dim": 60, "rope_axes": (2, 4, 4), "double_layers": 3, "mlp_ratio": 2.5},
            {"dim": 60, "action_dim": 3},
        ),
        (
            {"refiner_layers": 1, "refiner_mlp_ratio": 3.0, "rope_theta": 500.0},
            {"dim": 24, "mlp_ratio": 2.0},
        ),
    ],
)
def test_other_sizes_are_told_by_tensors_and_settings(changes, expert):
    """What we write of a policy is what we read of it, and is in order."""
    sizes = dict(in_channels=8, text_dim=10, dim=24, heads=2, double_layers=1, single_layers=2)
    backbone = OvisU1Config(**{**sizes, "rope_axes": (4, 4, 4), **changes})
    config = ImageWAMConfig(backbone, ActionExpertConfig(**expert), horizon=6)
    settings = json.loads(json.dumps(official_settings(config)))
    assert imagewam_config(official_specs(config), settings) == config
    assert check_settings(settings, {}) == []


def test_sizes_that_nothing_tells(released):
    small = ImageWAMConfig(
        OvisU1Config(dim=24, heads=2, double_layers=1, single_layers=1, rope_axes=(4, 4, 4)),
        ActionExpertConfig(dim=24),
    )
    specs = official_specs(small)
    with pytest.raises(ConversionError, match=r"--set rope_axes=\.\.\. --set rope_theta=\.\.\."):
        imagewam_config(specs, {})
    for section, problem in (
        ({"yak_config": {"num_heads": 3}}, "heads is given as 3, the shapes say 2"),
        ({"yak_config": {"vec_in_dim": 8}}, "vec_in_dim is given as 8, the shapes say 24"),
        ({"txt_refiner": {"heads": 2}}, "txt_refiner: heads is given as 2, the shapes say 4"),
        ({"visual_generator_config": {"depth": 2}}, "double_layers is given as 2"),
    ):
        with pytest.raises(ConversionError, match=problem):
            imagewam_config(specs, section)
    with pytest.raises(ConversionError, match="action_dim is given as 8, the shapes say 7"):
        imagewam_config(released, {"action_dit_config": {"action_dim": 8}})
    # The official code replaces these, whatever its training config says.
    placeholders = {"residual_dim": 1024, "num_heads": 24, "num_layers_double": 5}
    found = imagewam_config(released, {"model": {"action_dit_config": placeholders}})
    assert found.expert == RELEASED.expert


def test_the_place_of_the_state_among_the_text_says_nothing(released):
    """Text has no positions, and padding is read by no one."""
    for packed in (False, True):
        found = imagewam_config(released, {"pack_proprio_after_text": packed})
        assert found.proprio_position is None
    assert "pack_proprio_after_text" not in official_settings(RELEASED)["model"]


def test_official_sizes_of_a_new_expert():
    assert initial_expert_config({}, OVIS_U1) == RELEASED.expert
    given = {"action_dit_config": {"max_action_horizon": 32, "residual_dim": 1024}}
    found = initial_expert_config(given, OVIS_U1)
    assert (found.max_horizon, found.dim) == (32, 1536)


def metadata_of(path):
    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        return checkpoints.restore_json(step, "metadata")


# What the released model holds besides transformer and autoencoder.
OTHERS = {
    "llm.model.embed_tokens.weight": (8, 4),
    "llm.model.layers.0.self_attn.q_norm.weight": (2,),
    "visual_tokenizer.backbone.trunk.post_trunk_norm.weight": (4,),
    "vte.weight": (8, 4),
}


@pytest.fixture
def whole(tmp_path):
    """A file like that of Ovis-U1-3B, with the config.json beside it."""
    folder = tmp_path / "Ovis-U1"
    folder.mkdir()
    parts = {
        "backbone": load_file(golden(CASE) / "model.safetensors"),
        "vae": load_file(golden(CASE) / "vae.safetensors"),
    }
    tensors = {
        f"visual_generator.backbone.{name.removeprefix(BACKBONE)}": array
        for name, array in parts["backbone"].items()
        if name.startswith(BACKBONE)
    }
    tensors |= {f"visual_generator.vae.{name}": array for name, array in parts["vae"].items()}
    tensors |= {name: np.ones(shape, np.float32) for name, shape in OTHERS.items()}
    save_file(tensors, folder / "model.safetensors")
    recorded = config_of(golden(CASE))
    config = {
        "hidden_size": 2048,
        "visual_generator_config": {**recorded["yak_config"], "vae_config": recorded["vae_config"]},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_released_model_and_back(whole, tmp_path):
    """Transformer and autoencoder are taken out of the whole, and come back bit for bit."""
    with pytest.raises(ConversionError, match=r"--set weights=visual_generator\.backbone"):
        convert([whole], tmp_path / "none")
    expected = load_file(whole / "model.safetensors")
    for part in ("backbone", "vae"):
        prefix = f"visual_generator.{part}"
        convert([whole], tmp_path / part, overrides={"weights": prefix})
        out = tmp_path / f"{part}.safetensors"
        export(tmp_path / part, "ovis_u1", out)
        found = load_file(out)
        names = {name for name in expected if name.startswith(f"{prefix}.")}
        assert {f"{prefix}.{name}" for name in found} == names
        for name, array in found.items():
            np.testing.assert_array_equal(array, expected[f"{prefix}.{name}"])
    section = metadata_of(tmp_path / "vae")["config"]["autoencoder"]
    assert (section["scale"], section["shift"], section["groups"]) == (0.13025, 0, 4)


def test_the_autoencoder_at_full_size():
    """docs/spec/imagewam_ovis_u1.md, 3: without a config its constants are those of SDXL."""
    like = COMPONENTS["autoencoder"].abstract(SDXL)
    shapes = foreign_shapes(autoencoder_kl_rules(SDXL), like)
    assert (len(shapes), sum(map(math.prod, shapes.values()))) == (248, 83_653_863)
    tiny = load_file(golden(CASE) / "vae.safetensors")
    specs = {name: TensorSpec(x.shape, x.dtype, "vae") for name, x in tiny.items()}
    with pytest.raises(ConversionError, match="width 8 is not a multiple of groups 32"):
        autoencoder_kl_config(specs, {})
    found = autoencoder_kl_config(specs, {"norm_num_groups": 4})
    assert (found.scale, found.shift, found.has_quantizers) == (0.13025, 0, True)
    assert (SDXL.channels, SDXL.factor) == (OVIS_U1.in_channels, 16)


@pytest.mark.slow(minutes=1)
def test_a_converted_policy_has_the_rest_of_its_recipe():
    config = metadata_of(converted(CASE))["config"]
    assert config["text"]["encoder"] == "ovis_u1"
    assert config["autoencoder"]["name"] == "kl" and config["autoencoder"]["groups"] == 4
    found = policy_config(config["model"])
    assert (found.backbone.heads, found.backbone.group_sizes, found.horizon) == (2, (2, 1), 6)


@pytest.mark.parametrize(
    "name",
    [
        f"{BACKBONE}txt_in.individual_token_refiner.blocks.1.norm2.bias",
        f"{EXPERT}double_blocks.5.txt_attn.qkv.bias",  # which nothing reads
    ],
)
def test_conversion_is_strict(released, name):
    rules, like = imagewam_rules(RELEASED), abstract_params(RELEASED)
    lacking = {n: spec for n, spec in released.items() if n != name}
    with pytest.raises(ConversionError, match=f"1 tensors missing .{name}"):
        check(rules, lacking, like, "model.pt")
    other = released | {f"{name}es": released[name]}
    with pytest.raises(ConversionError, match=f"1 unexpected .{name}es"):
        check(rules, other, like, "model.pt")


def test_tensors_tell_ovis_u1_from_flux2():
    """Although blocks and heads of both have the same names."""
    for path, name in (
        ("imagewam_flux2/model", "ImageWAM on FLUX.2, official checkpoint"),
        ("imagewam_ovis_u1/model", "ImageWAM on Ovis-U1, official checkpoint"),
        ("flux2_transformer/weights", "FLUX.2 transformer, original layout"),
        ("action_init_ovis_u1/yak_weights", "Ovis-U1 transformer, released layout"),
    ):
        case, _, file = path.partition("/")
        found = recognize_source(golden(case) / f"{file}.safetensors", {})
        assert found.layout.name == name
