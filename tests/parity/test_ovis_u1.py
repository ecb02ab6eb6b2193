"""`imagewam verify` and `imagewam record` of policies on Ovis-U1, which share their programs."""

import json

import pytest

from imagewam_jax.parity.record import record
from imagewam_jax.parity.verify import verify
from imagewam_jax.weights.convert import convert
from tests.goldens import golden
from tests.parity.recordings import (
    assert_holds_the_same,
    converted,
    names_of,
    recorded_names,
    without,
)
from tests.weights.foreign import copy_case


@pytest.mark.slow(minutes=2)
def test_a_whole_policy_on_ovis_u1():
    """As of OmniGen2; images are tokens, and imagined without the masks of training."""
    case = "imagewam_ovis_u1"
    report = verify(converted(case), golden(case))
    assert report.passed and not names_of(report, passed=False)
    found = names_of(report)
    norms = json.loads((golden(case) / "grad_norms.json").read_text())
    assert found >= {f"grad_norms.json: {name}" for name in norms}
    for file in ("trace", "grads", "vae"):
        assert found >= recorded_names(case, f"{file}.safetensors")
    inputs = ["video", "action", "noise_.*", "eps_.*", "u_.*", "proprio", "text_.*"]
    left = without(recorded_names(case, "train.safetensors") - found, *inputs, "action_.*_pad")
    masks = ("image_double", "joint_double", "single")
    assert left == {f"train.safetensors: attention_mask_{name}" for name in masks}
    inputs = [r"infer\d\.(noise|image|eps_vae|proprio|text_.*)", r"infer_video\.(noise|eps_vae)"]
    assert without(recorded_names(case, "infer.safetensors") - found, *inputs) == set()
    weights = recorded_names(case, "model.safetensors")
    aliases = r"mot\.mixtures\.video\.(double|single)_blocks.*"
    assert without(weights - found, aliases) == set()


@pytest.mark.parametrize("recipe", ["same", "mlp2"])
def test_first_weights_of_an_expert_for_ovis_u1(recipe, tmp_path):
    case = golden("action_init_ovis_u1")
    source = copy_case(case, tmp_path / "source", "yak_weights.safetensors")
    given = {"expert_mlp_ratio": {"same": 4.0, "mlp2": 2.0}[recipe]}
    convert([source], tmp_path / "made", expert="official", overrides=given)
    report = verify(tmp_path / "made", case)
    assert report.passed
    expected = recorded_names("action_init_ovis_u1", f"action_init_{recipe}.safetensors")
    assert expected < names_of(report)


@pytest.mark.slow(minutes=2)
def test_a_recording_holds_what_official_ones_hold(tmp_path):
    case = "imagewam_ovis_u1"
    record(converted(case), tmp_path / "recorded")
    assert verify(converted(case), tmp_path / "recorded").passed
    assert_holds_the_same(golden(case), tmp_path / "recorded" / "policy")
