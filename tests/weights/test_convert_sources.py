"""Conversions of weights as people have them: downloaded, wrapped, some files not beside them."""

import argparse
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagewam_jax import cli
from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.plan import recognize_source
from tests.goldens import golden
from tests.weights.foreign import assert_same, change, converted, copy_case

STATISTICS = "stats_single.json"


@pytest.fixture
def transformer(tmp_path) -> Path:
    return copy_case(golden("flux2_transformer"), tmp_path / "source")


@pytest.fixture
def policy(tmp_path) -> Path:
    """A policy without statistics, whose mode of normalization is known."""
    path = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")
    config = json.loads((path.parent / "config.json").read_text())
    config["processor"] = {"default_mode": "min/max"}
    (path.parent / "config.json").write_text(json.dumps(config))
    return path


def put_statistics(path: Path) -> Path:
    return Path(shutil.copyfile(golden("normalization") / STATISTICS, path))


def test_a_release_as_a_trainer_wrapped_it(policy, tmp_path, capsys):
    """The folder of a download is a source: its weights from DeepSpeed, with the trainer's objects
    beside them, its config, and its statistics under the release's name."""
    torch = pytest.importorskip("torch")
    put_statistics(policy.parent / "dataset_stats.json")
    convert([policy], tmp_path / "plain")
    tensors = {name: torch.from_numpy(x) for name, x in load_file(policy).items()}
    release = tmp_path / "release"
    release.mkdir()
    contents = {
        "module": {f"_orig_mod.{name}": x for name, x in tensors.items()},
        "optimizer": {"state": {0: torch.zeros(2)}},
        "args": argparse.Namespace(lr=1e-4),
    }
    torch.save(contents, release / "model.pt")
    (policy.parent / "config.json").rename(release / "train_config.yaml")
    put_statistics(release / "libero_2cam224_dataset_stats.json")
    capsys.readouterr()
    convert([release], tmp_path / "out")
    said = capsys.readouterr().out
    for note in ("read: model.pt", "not read: optimizer (1 tensors)", "for module._orig_mod.mot."):
        assert note in said
    (plain, expected), (metadata, trees) = (
        converted(tmp_path / "plain"),
        converted(tmp_path / "out"),
    )
    assert set(trees) == {"params", "normalizers"}
    assert_same(trees, expected)
    statistics = metadata["statistics"]["official"]
    assert statistics["action"] == plain["statistics"]["official"]["action"]
    assert statistics["source"]["file"] == "libero_2cam224_dataset_stats.json"


def test_statistics_that_are_missing_are_said_and_can_be_given(policy, tmp_path, capsys):
    convert([policy], tmp_path / "without")
    said = capsys.readouterr().out
    assert "no dataset_stats.json lies beside the policy" in said and "--statistics FILE" in said
    assert "normalizers" not in converted(tmp_path / "without")[1]
    file = put_statistics(tmp_path / "elsewhere.json")
    arguments = ["convert", str(policy), "--to", str(tmp_path / "with"), "--statistics", str(file)]
    assert cli.main(arguments) == 0
    assert "dataset_stats.json" not in capsys.readouterr().out
    low = json.loads(file.read_text())["action"]["default"]["global_min"]
    metadata, trees = converted(tmp_path / "with")
    assert metadata["statistics"]["official"]["action"]["min"] == low
    assert trees["normalizers"]["actions"]["center"].shape[-1] == len(low)


def test_statistics_that_cannot_be_told(policy, transformer, tmp_path):
    for name in ("libero", "robotwin"):
        put_statistics(policy.parent / f"{name}_dataset_stats.json")
    message = r"libero_dataset_stats.json, robotwin_dataset_stats.json: give .* --statistics FILE"
    with pytest.raises(ConversionError, match=message):
        convert([policy], tmp_path / "out")
    own = policy.rename(policy.with_name("robotwin.safetensors"))
    name = "robotwin_dataset_stats.json"  # that of the weights
    assert recognize_source(own, {}).sidecar.statistics_file.name == name
    assert f"statistics: {name}" in recognize_source(own, {}).notes
    with pytest.raises(ConversionError, match=r"no policy is among the weights"):
        convert([transformer], tmp_path / "out", statistics=policy.parent / "libero.json")
    assert not (tmp_path / "out").exists()


def test_the_set_to_take(transformer, tmp_path, capsys):
    """The one that the user names has its own numbers, and what was left out is said."""
    change(transformer, lambda t: t | {f"ema.{name}": 2 * x for name, x in t.items()})
    to = tmp_path / "out"
    arguments = ["convert", str(transformer), "--to", str(to)]
    assert cli.main(arguments) == 1
    assert "as --set weights=. or --set weights=ema" in capsys.readouterr().err
    assert not to.exists()
    assert cli.main([*arguments, "--set", "weights=ema"]) == 0
    assert "not read: 45 other tensors" in capsys.readouterr().out
    kernel = converted(to)[1]["params"]["backbone"]["image_in"]["kernel"]
    np.testing.assert_array_equal(kernel, load_file(transformer)["ema.img_in.weight"].T)


def test_layers_of_several_dtypes(transformer, tmp_path, capsys):
    """They are joined in float32, in which no number changes, and that is said."""
    name = "single_blocks.1.linear2.weight"
    change(transformer, lambda t: t | {name: t[name].astype(ml_dtypes.bfloat16)})
    convert([transformer], tmp_path / "out")
    arrays = "single_layers.block.out.kernel: all of their layers are read as float32"
    assert f"2 arrays have layers of several dtypes, such as backbone.{arrays}" in (
        capsys.readouterr().out
    )
    params = converted(tmp_path / "out")[1]["params"]["backbone"]
    mixed = load_file(transformer)[name].astype(np.float32)
    kernel = params["single_layers"]["block"]["mlp"]["out"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel[1], mixed[:, -kernel.shape[1] :].T)


def test_paths_below_the_home(transformer, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", "~/source/weights.safetensors", "--to=~/out"]) == 0
    assert (tmp_path / "out" / "0").is_dir() and not (tmp_path / "~").exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_nothing_is_left_after_an_error(transformer, tmp_path, is_there):
    """Nor is a folder, unless it was there before."""
    out = tmp_path / "out"
    if is_there:
        out.mkdir()

    def spoil(tensors):
        tensors["single_blocks.2.linear2.weight"][0, 0] = np.nan

    change(transformer, spoil)
    with pytest.raises(ConversionError, match="1 numbers that are NaN"):
        convert([transformer], out)
    assert out.exists() == is_there and not list(tmp_path.glob("out/*"))


def test_files_beside_the_weights_that_are_none(tmp_path):
    """A config that is gone is not passed over, and a pointer does not become a tokenizer."""
    source = copy_case(golden("text_qwen3"), tmp_path / "text")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 11422654\n"
    (source.parent / "tokenizer.json").write_text(pointer)
    with pytest.raises(
        ConversionError, match=r"tokenizer\.json: is a Git-LFS pointer to a file of 11"
    ):
        convert([source], tmp_path / "out")
    (source.parent / "tokenizer.json").unlink()
    config = source.parent / "config.json"
    config.write_text(pointer)
    with pytest.raises(ConversionError, match=r"config\.json: is a Git-LFS pointer"):
        convert([source], tmp_path / "out")
    config.unlink()
    config.symlink_to("gone")
    with pytest.raises(ConversionError, match=r"config\.json: is a link to gone, which is"):
        convert([source], tmp_path / "out")


def test_a_folder_of_pytorchs_files(tmp_path):
    torch = pytest.importorskip("torch")
    source = copy_case(golden("text_qwen3"), tmp_path / "text")
    convert([source], tmp_path / "plain")
    tensors = {name: torch.from_numpy(x) for name, x in load_file(source).items()}
    source.unlink()
    names = sorted(tensors)
    for i in range(2):
        part = {name: tensors[name] for name in names[i::2]}
        torch.save(part, source.parent / f"pytorch_model-0000{i + 1}-of-00002.bin")
    convert([source.parent], tmp_path / "out")
    assert_same(converted(tmp_path / "out")[1], converted(tmp_path / "plain")[1])
    save_file({"x": np.zeros(1)}, source.parent / "model.safetensors")
    with pytest.raises(ConversionError, match=r"text: 1 tensors .* of no known layout"):
        convert([source.parent], tmp_path / "again")
