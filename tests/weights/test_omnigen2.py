"""OmniGen2 and its autoencoder in the layouts of others, and back."""

import contextlib
import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import ConversionError
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.omnigen2 import OMNIGEN2, OmniGen2Config
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import abstract_params
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.export import export
from imagewam_jax.weights.io.tensors import TensorSpec
from imagewam_jax.weights.layouts.autoencoder_kl import autoencoder_kl_config
from imagewam_jax.weights.layouts.imagewam import (
    BACKBONE,
    EXPERT,
    alias_names,
    imagewam_config,
    imagewam_rules,
)
from imagewam_jax.weights.layouts.imagewam_checkpoint import official_settings
from imagewam_jax.weights.layouts.imagewam_settings import check_settings
from imagewam_jax.weights.layouts.mapping import check
from imagewam_jax.weights.layouts.omnigen2 import initial_expert_config
from tests.goldens import golden
from tests.models.official import config_of
from tests.parity.recordings import converted
from tests.weights.foreign import change, copy_case, official_specs

CASE = "imagewam_omnigen2"
RELEASED = ImageWAMConfig(OMNIGEN2, ActionExpertConfig(), proprio_dim=8)


@pytest.fixture(scope="module")
def released():
    return official_specs(RELEASED)


def test_the_names_at_full_size(released):
    """docs/spec/imagewam_omnigen2.md, 6, 7 and 12."""
    backbone = [name for name in released if name.startswith(BACKBONE)]
    expert = [name for name in released if name.startswith(EXPERT)]
    aliases = alias_names(RELEASED)
    assert (len(backbone), len(expert), len(aliases)) == (582, 490, 480)
    alias = "mot.mixtures.video.blocks.31.attn.to_out.0.weight"
    assert aliases[alias] == f"{BACKBONE}layers.31.attn.to_out.0.weight"
    for name, shape in (
        (f"{BACKBONE}layers.0.attn.to_k.weight", (840, 2520)),
        (f"{BACKBONE}noise_refiner.1.norm1.linear.weight", (10080, 1024)),
        (f"{BACKBONE}context_refiner.1.norm1.weight", (2520,)),
        (f"{BACKBONE}norm_out.linear_2.weight", (64, 2520)),
        (f"{EXPERT}blocks.31.attn.to_out.0.weight", (1024, 2520)),
        (f"{EXPERT}head.linear_2.weight", (7, 1024)),
        ("proprio_encoder.weight", (2048, 8)),
    ):
        assert released[name].shape == shape, name


def test_the_released_sizes_need_no_settings(released):
    found = imagewam_config(released, {"coordinate_dtype": "float32"})
    assert found == RELEASED
    check(imagewam_rules(found), released, abstract_params(found), "model.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heads": 6, "kv_heads": 3, "dim": 72, "layers": 3, "refiner_layers": 1},
        {"heads": 2, "kv_heads": 2, "dim": 24, "mlp_dim": 72, "patch": 1, "in_channels": 5},
        {"timestep_scale": 1000.0, "action_rope_theta": 500.0, "norm_eps": 1e-6},
    ],
)
@pytest.mark.parametrize("expert", [{"dim": 20}, {"dim": 1030, "mlp_ratio": 2.0, "action_dim": 3}])
def test_other_sizes_are_told_by_tensors_and_settings(changes, expert):
    """What we write of a policy is what we read of it, and is in order."""
    sizes = dict(in_channels=16, text_dim=10, dim=48, heads=4, kv_heads=2, layers=2, mlp_dim=192)
    backbone = OmniGen2Config(**{**sizes, "rope_axes": (4, 4, 4), "timestep_scale": 1.0, **changes})
    config = ImageWAMConfig(backbone, ActionExpertConfig(**expert), horizon=6)
    settings = json.loads(json.dumps(official_settings(config)))
    assert imagewam_config(official_specs(config), settings) == config
    assert check_settings(settings, {}) == []


def test_sizes_that_nothing_tells(released):
    small = ImageWAMConfig(
        OmniGen2Config(dim=48, heads=4, kv_heads=2, rope_axes=(4, 4, 4)), ActionExpertConfig()
    )
    with pytest.raises(ConversionError, match=r"--set rope_axes=\.\.\. --set timestep_scale"):
        imagewam_config(official_specs(small), {})
    wrong = {"transformer_config": {"num_kv_heads": 8}}
    with pytest.raises(ConversionError, match="kv_heads is given as 8"):
        imagewam_config(released, wrong)
    with pytest.raises(ConversionError, match="residual_dim is given as 512, the shapes say 1024"):
        imagewam_config(released, {"action_dit_config": {"residual_dim": 512}})
    # The official training config has other numbers there, which the official code replaces.
    placeholders = {"num_heads": 24, "num_kv_heads": 8, "attn_head_dim": 96, "num_layers": 26}
    found = imagewam_config(released, {"model": {"action_dit_config": placeholders}})
    assert found.backbone == OMNIGEN2


def test_a_state_behind_padded_text_is_refused(released):
    with pytest.raises(ConversionError, match="reads the features of padded text"):
        imagewam_config(released, {"pack_proprio_after_text": False, "qwen_context_len": 128})


def test_official_sizes_of_a_new_expert():
    assert initial_expert_config({}) == ActionExpertConfig()
    rounded = {"action_dit_config": {"residual_dim": 36, "multiple_of": 32}}
    assert initial_expert_config(rounded).mlp_dim == 160


def test_a_converted_policy_has_the_rest_of_its_recipe():
    config = saved_config(converted(CASE))
    assert config["text"]["encoder"] == "qwen2_5_vl"
    assert config["autoencoder"]["name"] == "kl" and config["autoencoder"]["groups"] == 4
    assert policy_config(config["model"]).backbone.kv_heads == 2


def saved_config(path):
    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        return checkpoints.restore_json(step, "metadata")["config"]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_files_of_diffusers_come_back(dtype, tmp_path):
    folder = tmp_path / "source"
    vae = copy_case(golden(CASE), folder / "vae", "vae.safetensors")
    name = "transformer_weights.safetensors"
    transformer = copy_case(golden("action_init_omnigen2"), folder / "transformer", name)
    convert([transformer, vae], tmp_path / "checkpoint", dtype=dtype)
    export(tmp_path / "checkpoint", "diffusers", tmp_path / "out")
    for path in (transformer, vae):
        out = tmp_path / "out" / path.parent.name
        found = load_file(out / "diffusion_pytorch_model.safetensors")
        expected = load_file(path)
        assert found.keys() == expected.keys()
        for tensor, array in expected.items():
            np.testing.assert_array_equal(found[tensor], array.astype(found[tensor].dtype))
        convert([out], tmp_path / "again" / path.parent.name)  # with what its config.json says
    section = config_of(golden(CASE))["vae_config"]
    written = config_of(tmp_path / "out" / "vae")
    same = {n: v for n, v in section.items() if n not in ("kind", "sample_size")}
    assert {name: written[name] for name in same} == same


def test_the_autoencoder_of_a_model_without_a_shift():
    specs = {
        n: TensorSpec(x.shape, x.dtype, "vae")
        for n, x in load_file(golden(CASE) / "vae.safetensors").items()
    }
    found = autoencoder_kl_config(specs, {"scaling_factor": 0.13025, "norm_num_groups": 4})
    assert (found.scale, found.shift) == (0.13025, 0)
    found = autoencoder_kl_config(specs, {"norm_num_groups": 4})
    assert (found.scale, found.shift) == (0.3611, 0.1159)
    with pytest.raises(ConversionError, match="width 8 is not a multiple of groups 32"):
        autoencoder_kl_config(specs, {})


def test_conversion_is_strict(tmp_path):
    source = copy_case(golden(CASE), tmp_path / "source", "model.safetensors")
    name = f"{BACKBONE}context_refiner.1.ffn_norm2.weight"

    def without(tensors):
        return {n: x for n, x in tensors.items() if n != name}

    change(source, without)
    with pytest.raises(ConversionError, match=f"1 tensors missing .{name}"):
        convert([source], tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
