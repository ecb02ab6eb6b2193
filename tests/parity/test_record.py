"""`imagewam record`: recordings of our side, which hold what those of the official code hold."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagewam_jax import cli
from imagewam_jax.errors import CheckpointError, ConfigError
from imagewam_jax.parity.cases.base import Sizes
from imagewam_jax.parity.record import record
from imagewam_jax.parity.verify import verify
from imagewam_jax.weights.convert import convert
from tests.goldens import golden
from tests.parity.recordings import assert_holds_the_same, converted, edit
from tests.weights.foreign import copy_case

# For each checkpoint, the folder that it is recorded in.
FOLDERS = {
    "imagewam_flux2": "policy",
    "imagewam_omnigen2": "policy",
    "flux2_transformer": "transformer",
    "flux2_autoencoder": "autoencoder",
    "text_qwen3": "text_encoder",
}
SLOW = {"imagewam_omnigen2"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Recordings of checkpoints, each made when it is first asked for."""
    parent = tmp_path_factory.mktemp("recorded")

    def recorded(name: str, **options) -> Path:
        if not (parent / name).exists():
            record(converted(name), parent / name, **options)
        return parent / name

    return recorded


@pytest.fixture(scope="module")
def policy(recorded):
    """The recording of a policy and its autoencoder."""
    return recorded("imagewam_flux2", sizes=Sizes(gradients=True))


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.slow) if c in SLOW else c for c in sorted(FOLDERS)],
)
def test_it_passes_and_holds_what_official_recordings_hold(case, recorded, policy):
    folder = recorded(case)
    assert verify(converted(case), folder).passed
    assert_holds_the_same(golden(case), folder / FOLDERS[case])


def test_the_numbers_of_a_policy_belong_together(policy):
    """Recorded outputs follow from recorded inputs, computed in NumPy."""
    train, infer = (load_file(policy / "policy" / f"{n}.safetensors") for n in ("train", "infer"))
    time = train["unit_timestep_video"][:, None, None]
    noisy = (1 - time) * train["target_latent"] + time * train["noise_video"]
    np.testing.assert_allclose(train["noisy_video"], noisy, atol=1e-6)
    error = train["pred_video"] - (train["noise_video"] - train["target_latent"])
    loss = np.square(error).mean((1, 2))
    np.testing.assert_allclose(train["video_loss_per_sample"], loss, rtol=1e-5)
    error = np.square(train["pred_action"] - (train["noise_action"] - train["action"]))
    valid = ~(train["action_is_pad"][..., None] | train["action_dim_is_pad"][:, None])
    assert 0 < valid.sum() < valid.size
    loss = (error * valid).sum((1, 2)) / valid.sum((1, 2))
    np.testing.assert_allclose(train["action_loss_per_sample"], loss, rtol=1e-5)
    total = 0.5 * (train["weight_video"] * train["video_loss_per_sample"]).mean()
    total += (train["weight_action"] * train["action_loss_per_sample"]).mean()
    np.testing.assert_allclose(train["loss_total"], total, rtol=1e-5)

    lengths = train["text_attention_mask"].sum(-1)
    assert len(set(lengths.tolist())) == len(lengths)
    for i, n in enumerate(lengths):
        text = train["context_with_proprio"][i]
        np.testing.assert_array_equal(text[:n], train["text_hidden_states"][i, :n])
        assert text[n].any() and not text[n + 1 :].any()
    for i in range(2):
        times = np.append(infer[f"infer{i}.timesteps_unit"], 0)
        actions = infer[f"infer{i}.noise"] + np.cumsum(
            infer[f"infer{i}.velocity_per_step"] * np.diff(times)[:, None, None], axis=0
        )
        np.testing.assert_allclose(infer[f"infer{i}.latents_per_step"], actions, atol=1e-5)
        np.testing.assert_array_equal(infer[f"infer{i}.image"][0], train["video"][i, :, 0])
    gradients = load_file(policy / "policy" / "grads.safetensors")
    norms = json.loads((policy / "policy" / "grad_norms.json").read_text())
    assert (
        norms.keys()
        == json.loads((golden("imagewam_flux2") / "grad_norms.json").read_text()).keys()
    )
    for name, gradient in gradients.items():
        assert norms[name] == pytest.approx(np.linalg.norm(gradient), rel=1e-5)


def test_other_weights_fail(policy, tmp_path):
    """The recording of one policy, with a policy that differs in one number."""
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")

    def one_number(tensors):
        tensors["mot.mixtures.action.head.linear.weight"][2, 3] += 0.1

    edit(source, one_number)
    convert([source], tmp_path / "wrong")
    report = verify(tmp_path / "wrong", policy)
    failed = {check.name for check in report.checks if not check.passed}
    assert {"pred_action", "loss_total", "infer0.action"} < failed
    assert not failed & {"pred_video", "infer0.kv.single.2.v", "single.2.action"}


@pytest.mark.slow(minutes=1)
def test_a_policy_without_a_robot_state_and_autoencoder(recorded):
    """Random latents; no gradients unless they are asked for."""
    sizes = Sizes(batch=1, grid=(2, 2), text_tokens=5)
    folder = recorded("policy_alone", sizes=sizes) / "policy"
    assert verify(converted("policy_alone"), folder).passed
    train = load_file(folder / "train.safetensors")
    assert "video" not in train and "proprio" not in train
    assert train["ref_image_latents"].shape == (1, 4, 16)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "infer.safetensors",
        "trace.safetensors",
        "train.safetensors",
    ]


@pytest.mark.slow(minutes=1)
def test_the_backbone_of_a_policy(tmp_path):
    """A transformer's recording, repeated by a policy that has that transformer."""
    prefix = "mot.mixtures.video.transformer."
    tensors = load_file(golden("imagewam_flux2") / "model.safetensors")
    (tmp_path / "source").mkdir()
    backbone = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    save_file(backbone, tmp_path / "source" / "transformer.safetensors")
    given = {"rope_axes": [4, 4, 4, 4], "rope_theta": 2000}
    convert(
        [tmp_path / "source" / "transformer.safetensors"], tmp_path / "transformer", overrides=given
    )
    record(tmp_path / "transformer", tmp_path / "recorded")
    report = verify(converted("imagewam_flux2"), tmp_path / "recorded")
    assert report.passed
    assert {"pred_with_ref", "denoise_cfg.final"} < {check.name for check in report.checks}


def test_the_command_line(tmp_path, capsys):
    path, to = converted("text_qwen3"), tmp_path / "recorded"
    arguments = ["record", str(path), f"--to={to}", "--batch=3", "--text-tokens=5"]
    assert cli.main([*arguments, "--seed=1"]) == 0
    assert f"{to}/text_encoder/io.safetensors: 8 tensors" in capsys.readouterr().out
    first = load_file(to / "text_encoder" / "io.safetensors")
    assert first["input_ids"].shape == (3, 5)
    assert first["attention_mask"].sum(-1).tolist() == [3, 4, 5]
    assert cli.main(["verify", str(path), str(to)]) == 0

    assert cli.main([*arguments, "--seed=1"]) == 1
    assert "is there already" in capsys.readouterr().err
    for seed, same in ((1, True), (2, False)):
        other = tmp_path / f"seed{seed}"
        record(path, other, seed=seed, sizes=Sizes(batch=3, text_tokens=5))
        again = load_file(other / "text_encoder" / "io.safetensors")
        assert all(np.array_equal(first[n], again[n]) for n in first) is same


@pytest.mark.slow(minutes=1)
def test_in_bfloat16(tmp_path, capsys):
    """Computed in it, and said to be where it is compared in another dtype."""
    path, to = converted("flux2_transformer"), tmp_path / "recorded"
    record(path, to, dtype="bfloat16")
    assert verify(path, to, dtype="bfloat16").passed
    capsys.readouterr()
    assert not verify(path, to).passed
    assert "recorded in bfloat16, whose rounding shows below" in capsys.readouterr().out


def test_nothing_is_left_of_a_recording_that_failed(tmp_path):
    with pytest.raises(ConfigError, match="at least 1"):
        record(converted("text_qwen3"), tmp_path / "recorded", sizes=Sizes(batch=0))
    with pytest.raises(CheckpointError, match="no 'ema' in it"):
        record(converted("flux2_transformer"), tmp_path / "recorded", weights="ema")
    assert not list(tmp_path.iterdir())
