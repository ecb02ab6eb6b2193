"""The official training config: what a conversion makes of its keys."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from imagewam_jax import cli
from imagewam_jax.config.defaults import official_recipe
from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.converted_config import merged_config
from imagewam_jax.weights.io.files import open_weights
from imagewam_jax.weights.layouts.imagewam import imagewam_config
from imagewam_jax.weights.layouts.imagewam_settings import check_settings, key_order, setting
from imagewam_jax.weights.layouts.metadata import SourceMetadata
from imagewam_jax.weights.official import global_statistics
from imagewam_jax.weights.references import resolved
from imagewam_jax.weights.sidecar import read_sidecar
from tests.goldens import golden
from tests.weights.foreign import converted

# The keys of the official configs, under which the tensors are those of a recorded policy.
OFFICIAL = """
mixed_precision: no
eval_num_inference_steps: 8
output_dir: ./runs/${now:%Y}
data:
  train:
    num_frames: 33
    global_sample_stride: 4
    endpoint_frames_only: true
    action_video_freq_ratio: 1
    processor:
      action_output_dim: 7
      proprio_output_dim: 8
      use_stepwise_action_norm: false
      norm_default_mode: min/max
      norm_exception_mode: null
  val: {num_frames: 5, processor: {norm_default_mode: z-score}}
flux2_params: {axes_dim: [4, 4, 4, 4], theta: 2.0e+3}
model:
  _target_: imagewam.runtime.create_imagewam_flux2_klein
  flux2_model_path: ???
  proprio_dim: ${data.train.processor.proprio_output_dim}
  action_dit_config:
    action_dim: ${data.train.processor.action_output_dim}
    hidden_dim: 40
  video_scheduler: {train_shift: 3, infer_shift: 4, num_train_timesteps: 1000}
  loss: {lambda_video: 5.0e-1}
"""


@pytest.fixture
def source(tmp_path):
    """The weights of a recorded policy beside the config and the statistics of a release."""
    folder = tmp_path / "source"
    folder.mkdir()
    shutil.copyfile(golden("imagewam_flux2") / "model.safetensors", folder / "model.safetensors")
    shutil.copyfile(golden("normalization") / "stats_single.json", folder / "dataset_stats.json")
    (folder / "train_config.yaml").write_text(OFFICIAL)
    return folder / "model.safetensors"


def official(edit=lambda settings: None):
    settings = yaml.safe_load(OFFICIAL)
    edit(settings)
    return resolved(settings, Path("train_config.yaml"))


def test_a_release(source, tmp_path):
    convert([source], tmp_path / "out")
    metadata, trees = converted(tmp_path / "out")
    config = metadata["config"]
    assert config["model"]["horizon"] == 32 and config["data"]["stride"] == 4
    assert config["data"]["normalization"] == "min/max"
    assert config["model"]["coordinate_dtype"] == "float32"
    assert config["model"]["target_flow"] == {"train_shift": 3, "sample_shift": 4}
    assert config["model"]["target_loss_weight"] == 0.5
    assert config["model"]["backbone"]["rope_theta"] == 2000
    assert config["acting"]["euler_steps"] == 8
    stats = json.loads((source.parent / "dataset_stats.json").read_text())
    low, high = (np.array(stats["action"]["default"][f"global_{n}"]) for n in ("min", "max"))
    scale = np.where(high - low < 1e-4, 1, 2 / np.maximum(high - low, 1e-4))
    np.testing.assert_allclose(trees["normalizers"]["actions"]["scale"][0], scale, rtol=1e-6)


def test_an_error_is_one_line_that_names_file_and_key(source, tmp_path, capsys):
    path = source.parent / "train_config.yaml"
    path.write_text(OFFICIAL.replace("num_frames: 33", "num_frames: ${data.frames}"))
    assert cli.main(["convert", str(source), "--to", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"imagewam convert: {path}: data.train.num_frames is ${{data.frames}}, which cannot be "
        "filled in from this file: write the value there that the training had"
    )
    assert not (tmp_path / "out").exists()


def put(path, value):
    """An edit that sets a key of the config."""

    def edit(settings):
        *sections, name = path.split(".")
        for section in sections:
            settings = settings.setdefault(section, {})
        settings[name] = value

    return edit


PROCESSOR = "data.train.processor"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (f"{PROCESSOR}.use_stepwise_action_norm", True, "expected false"),
        (
            f"{PROCESSOR}.norm_exception_mode",
            {"action": {"default": "z-score"}},
            "others are 'min/max'",
        ),
        (f"{PROCESSOR}.norm_exception_mode", "z-score", "expected null"),
        (f"{PROCESSOR}.norm_default_mode", 3, "expected text"),
        (f"{PROCESSOR}.action_state_merger", {"_target_": "a.Sum"}, "expected ConcatLeftAlign"),
        ("data.train.endpoint_frames_only", False, "expected true"),
        ("data.train.action_video_freq_ratio", 4, "expected 1"),
        ("data.train.num_frames", 33.0, "expected an integer"),
        ("data.train.num_frames", 1, "expected an integer above 1"),
        ("data.train.num_frames", "???", "still to be given"),
        ("data.train", "${base.train}", "cannot be filled in"),
        ("model", "${oc.env:MODEL}", "cannot be filled in"),
        ("model._target_", ["imagewam.runtime.create_imagewam_ovis_u1"], "expected text"),
        ("model.action_scheduler.num_train_timesteps", 500, "expected 1000"),
        ("model.loss.lambda_action", True, "expected a number"),
        ("model.video_scheduler.train_shift", "5", "expected a number"),
        ("model.pack_proprio_after_text", "false", "expected true or false"),
        ("mixed_precision", "fp16", "expected bf16 or no"),
    ],
)
def test_what_is_not_supported_or_no_value(path, value, problem):
    with pytest.raises(ConversionError, match=rf"^{re.escape(path)}\S* is .*{problem}"):
        check_settings(official(put(path, value)), {})


def test_what_changes_nothing():
    assert check_settings(official(), {}) == []
    same = {"action": {"default": "min/max"}, "state": {"default": None}}
    for edit in (put(f"{PROCESSOR}.norm_exception_mode", same), put("wandb.horizon", "x")):
        assert check_settings(official(edit), {}) == []
    assert check_settings(official(put("mixed_precision", "fp16")), {"coordinate_dtype": "x"}) == []


def test_keys_that_are_not_read_are_said():
    def edit(settings):
        put(f"{PROCESSOR}.action_state_transforms", [{"_target_": "a.Pad"}])(settings)
        put("model.noise_floor", 0.1)(settings)
        put("model.mot_gqa_implementation", "repeat")(settings)

    pad, unknown = check_settings(official(edit), {})
    assert pad.startswith(f"{PROCESSOR}.action_state_transforms: ") and "7.7" in pad
    assert unknown.endswith("not known here and were not read: model.noise_floor")


def test_a_key_that_has_two_values():
    with pytest.raises(ConversionError, match=r"num_frames is 33 and .*\.num_frames is 17"):
        setting(official(put("data.extra.num_frames", 17)), "num_frames")


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (put("action_horizon", 16), "chunks of 16 actions contradict num_frames=33"),
        (put("loss.lambda_video", 0.25), "model.loss.lambda_video is 0.5 and loss.lambda_video is"),
        (put("model.proprio_dim", 14), "proprio_dim is given as 14, the shapes say 8"),
        (put("data.action_output_dim", 14), "action_output_dim is 7 and .* is 14"),
        (put("model.action_dit_config.num_layers_double", 5), "num_layers_double is given as 5"),
        (put("torch_dtype", "torch.bfloat16"), "torch_dtype=torch.bfloat16 and mixed_precision"),
        (put("model._target_", "a.create_imagewam_ovis_u1"), r"on FLUX\.2 \(create_.*klein\)"),
        (put("model._target_", "a.create_imagewam"), "makes its policy by 'a.create_imagewam'"),
    ],
)
def test_what_contradicts_the_tensors_or_itself(edit, problem):
    specs = open_weights(golden("imagewam_flux2") / "model.safetensors").specs

    assert imagewam_config(specs, official()).horizon == 32
    deeper = imagewam_config(specs, {"cfg": official(), "rope_axes": [4] * 4, "rope_theta": 2000})
    assert (deeper.horizon, deeper.target_flow.train_shift) == (32, 3)
    with pytest.raises(ConversionError, match=problem):
        imagewam_config(specs, official(edit))


@pytest.mark.parametrize(
    ("ours", "theirs", "problem"),
    [
        ({"normalization": "z-score"}, {}, r"'z-score', .*norm_default_mode='min/max'"),
        ({"stride": 1}, {"global_sample_stride": 4}, "1 as data.stride, .*=4"),
        ({}, {"num_output_cameras": 3}, "2 as the number of data.cameras, .*=3"),
        ({}, {"video_size": [288, 256]}, r"\[224, 448\] as images, .*=\[288, 256\]"),
        ({"layout": "references"}, {"concat_multi_camera": "horizontal"}, "the layout 'row'"),
        ({}, {"concat_multi_camera": "vertical"}, "above each other are not supported"),
        ({}, {"norm_default_mode": "minmax"}, "norm_default_mode: normalisation mode 'minmax'"),
        ({}, {"norm_default_mode": "1/-1"}, "norm_default_mode: normalisation mode '1/-1'"),
    ],
)
def test_a_config_of_the_users_that_contradicts_the_training(ours, theirs, problem):
    config = official_recipe().to_dict()
    config["model"] |= {"backbone": {"name": "flux2"}, "proprio_dim": 8}
    config["model"]["expert"]["action_dim"] = 7
    config["data"] |= {"cameras": ("primary", "wrist"), "layout": "row", "stride": 4} | ours
    section = {"model": json.loads(json.dumps(config["model"]))}
    files = {"norm_default_mode": "min/max", "video_size": [224, 448], "num_output_cameras": 2}
    files |= {"concat_multi_camera": "horizontal", "global_sample_stride": config["data"]["stride"]}
    found = merged_config([section], SourceMetadata(files, {}), config | {"data": config["data"] | {
        "normalization": "min/max", "layout": "row"}})  # fmt: skip
    assert found["data"]["normalization"] == "min/max"
    with pytest.raises(ConversionError, match=problem):
        merged_config([section], SourceMetadata(files | theirs, {}), config)


def test_two_configs_of_one_folder(tmp_path):
    """They complete each other, and must not contradict each other."""
    (tmp_path / "config.json").write_text('{"model": {"loss": {"lambda_video": 0.25}}, "name": 1}')
    (tmp_path / "train_config.yaml").write_text("model: {proprio_dim: 8}\nname: 2\n")
    sidecar = read_sidecar(tmp_path)
    assert sidecar.metadata == {
        "model": {"loss": {"lambda_video": 0.25}, "proprio_dim": 8},
        "name": 1,
    }
    (tmp_path / "config.yaml").write_text("model: {loss: {lambda_video: 0.5}}")
    message = rf"{tmp_path}/config.yaml: model.loss.lambda_video is 0.5, and 0.25 in .*config.json"
    with pytest.raises(ConversionError, match=message):
        read_sidecar(tmp_path)


def test_the_order_of_keys_is_that_of_the_training():
    """A file of statistics can have been written with its keys sorted."""
    stats = json.loads((golden("normalization") / "stats_multi.json").read_text())
    dims = {"action": 7, "state": 9}
    shape_meta = {
        "action": [{"key": "eef", "shape": 6}, {"key": "gripper", "shape": 1}],
        "state": [{"key": "joint", "shape": 7}, {"key": "grip", "shape": 2}],
    }
    settings = {"data": {"train": {"shape_meta": shape_meta}}}
    assert key_order(settings, "state") == ["joint", "grip"] and key_order({}, "state") is None
    expected = global_statistics(stats, None, dims)
    swapped = {f: dict(reversed(stats[f].items())) for f in ("action", "state")}
    found = global_statistics(swapped, None, dims, settings)
    for field in expected:
        np.testing.assert_array_equal(found[field]["mean"], expected[field]["mean"])
    assert not np.array_equal(
        global_statistics(swapped, None, dims)["state"]["mean"], expected["state"]["mean"]
    )
    shape_meta["action"][0]["key"] = "arm"
    with pytest.raises(ConversionError, match=r"action: has the keys .*eef.*shape_meta .*arm"):
        global_statistics(stats, None, dims, settings)
