"""`imagewam export`: what it writes is what was converted, and what others read."""

import json
import shutil
import sys

import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from imagewam_jax import cli
from imagewam_jax.checkpoints import store
from imagewam_jax.checkpoints.store import Checkpoints
from imagewam_jax.errors import CheckpointError, ConversionError
from imagewam_jax.weights import export as export_module
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.export import TARGETS, export
from imagewam_jax.weights.layouts.flux2_autoencoder import COUNTER
from tests.goldens import golden
from tests.training.tiny import trained_run
from tests.weights.foreign import assert_same, change, converted, copy_case

OFFICIAL = ["imagewam_flux2", "imagewam_flux2_noproprio", "imagewam_omnigen2", "imagewam_ovis_u1"]


def torch_tensors(path):
    """The nested dictionary of a `.pt` file, read without running code from it."""
    torch = pytest.importorskip("torch")
    return torch.load(path, weights_only=True)


def assert_same_tensors(found, expected):
    """The same keys in the same order, and the same bits."""
    torch = pytest.importorskip("torch")
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", OFFICIAL)
def test_an_official_checkpoint_comes_back(case, dtype, tmp_path):
    """It is the same in every respect: keys, their order, aliases, other values, and config."""
    torch = pytest.importorskip("torch")
    source = copy_case(golden(case), tmp_path / "source", "model.pt")
    native = torch_tensors(source)
    if dtype == "bfloat16":
        once = {}  # an alias stays another name of one tensor

        def cast(tensor):
            return once.setdefault(tensor.data_ptr(), tensor.to(torch.bfloat16))

        for part in ("mot", "proprio_encoder"):
            for name in native.get(part, ()):
                native[part][name] = cast(native[part][name])
        native["torch_dtype"] = "torch.bfloat16"
        torch.save(native, source)
    convert([source], tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", "official", tmp_path / "out")
    found = torch_tensors(tmp_path / "out" / "model.pt")
    assert list(found) == list(native)
    assert (found["step"], found["torch_dtype"]) == (native["step"], f"torch.{dtype}")
    for part in ("mot", "proprio_encoder"):
        assert type(found.get(part)) is type(native.get(part))
        assert_same_tensors(found.get(part, {}), native.get(part, {}))

    def sharing(state):
        """For each tensor, the name of the first one with the same storage."""
        first = {}
        return [first.setdefault(t.untyped_storage().data_ptr(), n) for n, t in state.items()]

    assert sharing(found["mot"]) == sharing(native["mot"])
    assert len(set(sharing(native["mot"]))) < len(native["mot"])
    assert (tmp_path / "out" / "model.pt").stat().st_size <= source.stat().st_size
    config = json.loads((source.parent / "config.json").read_text())
    assert yaml.safe_load((tmp_path / "out" / "train_config.yaml").read_text()) == config
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.pt", "train_config.yaml"]


def test_the_official_module_loads_it_strictly(tmp_path):
    """A module of PyTorch with the official names, its blocks registered twice."""
    torch = pytest.importorskip("torch")
    case = golden("imagewam_flux2")
    convert([case / "model.pt"], tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", "official", tmp_path / "out")
    native, found = (torch_tensors(p / "model.pt")["mot"] for p in (case, tmp_path / "out"))

    def grow(module, path, tensor):
        head, _, rest = path.partition(".")
        if not rest:
            module.register_parameter(head, torch.nn.Parameter(torch.zeros_like(tensor)))
            return
        if head not in module._modules:
            module.add_module(head, torch.nn.Module())
        grow(module._modules[head], rest, tensor)

    model = torch.nn.Module()
    for name, tensor in native.items():
        if ".video." not in name or ".transformer." in name:
            grow(model, name, tensor)
    video = model.mixtures.video
    video.double_blocks = video.transformer.double_blocks
    video.single_blocks = video.transformer.single_blocks
    result = model.load_state_dict(found, strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert_same_tensors(dict(sorted(model.state_dict().items())), dict(sorted(native.items())))


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_original_files_come_back(dtype, tmp_path):
    cases = [
        golden(name) / "weights.safetensors" for name in ("flux2_transformer", "flux2_autoencoder")
    ]
    transformer = copy_case(cases[0].parent, tmp_path / "source")
    convert([transformer, cases[1]], tmp_path / "checkpoint", dtype=dtype)
    export(tmp_path / "checkpoint", "flux2", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "ae.safetensors",
        "transformer.safetensors",
    ]
    for path, name in zip(cases, ("transformer", "ae"), strict=True):
        found = load_file(tmp_path / "out" / f"{name}.safetensors")
        expected = load_file(path)
        if dtype is not None:
            expected = {
                k: v if k == COUNTER else v.astype(ml_dtypes.bfloat16) for k, v in expected.items()
            }
        assert_same(dict(sorted(found.items())), dict(sorted(expected.items())))
    assert load_file(tmp_path / "out" / "ae.safetensors")[COUNTER] == 17


def test_a_part_alone_can_be_a_file(tmp_path):
    convert([golden("flux2_autoencoder") / "weights.safetensors"], tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", "flux2", tmp_path / "new" / "ae.safetensors")
    assert len(load_file(tmp_path / "new" / "ae.safetensors")) == 183
    with pytest.raises(ConversionError, match=r"ae.safetensors: name a folder, for vae"):
        export(tmp_path / "checkpoint", "diffusers", tmp_path / "other" / "ae.safetensors")
    assert not (tmp_path / "other").exists()


def test_a_policy_gives_its_transformer(tmp_path, capsys):
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")
    convert([source], tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", "flux2", tmp_path / "out")
    found = load_file(tmp_path / "out" / "transformer.safetensors")
    prefix = "mot.mixtures.video.transformer."
    expected = {
        name.removeprefix(prefix): tensor
        for name, tensor in load_file(source).items()
        if name.startswith(prefix)
    }
    assert_same(dict(sorted(found.items())), dict(sorted(expected.items())))
    assert "the action expert and the robot state's embedding are not" in capsys.readouterr().out


def test_casting_is_rounding_to_nearest(tmp_path):
    source = copy_case(golden("flux2_transformer"), tmp_path / "source")
    convert([source], tmp_path / "checkpoint")
    to = tmp_path / "out.safetensors"
    export(tmp_path / "checkpoint", "flux2", to, dtype="bfloat16")
    exact, found = load_file(source), load_file(to)
    for name, tensor in exact.items():
        assert found[name].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(found[name], tensor.astype(ml_dtypes.bfloat16), err_msg=name)


def test_fused_layers_of_several_dtypes(tmp_path):
    """Tensors that diffusers stores separately can differ in dtype; fused ones cannot."""
    source = copy_case(golden("flux2_transformer"), tmp_path / "source")
    convert([source], tmp_path / "original")
    export(tmp_path / "original", "diffusers", tmp_path / "diffusers")
    folder = tmp_path / "diffusers" / "transformer"

    def mixed(tensors):
        return {k: v.astype(np.float16) if ".attn.to_k." in k else v for k, v in tensors.items()}

    change(folder / "diffusion_pytorch_model.safetensors", mixed)
    convert([folder], tmp_path / "checkpoint")
    with pytest.raises(
        ConversionError, match=r"qkv.weight would be of float16 and float32; .*--dt"
    ):
        export(tmp_path / "checkpoint", "flux2", tmp_path / "out")
    export(tmp_path / "checkpoint", "flux2", tmp_path / "out", dtype="float32")
    export(tmp_path / "checkpoint", "diffusers", tmp_path / "again")
    name = "transformer/diffusion_pytorch_model.safetensors"
    assert_same(load_file(tmp_path / "again" / name), load_file(tmp_path / "diffusers" / name))


@pytest.mark.parametrize("kind", ["unmerged", "merged"])
def test_merged_adapters(kind, tmp_path):
    """The tensors are merged, their aliases too, and the config says that no adapter is left."""
    pytest.importorskip("torch")
    folder = golden("lora_checkpoints")
    source = copy_case(folder, tmp_path / "source", f"checkpoint_{kind}.pt")
    config = json.loads((source.parent / "config.json").read_text())
    adapters = {"enabled": True, "rank": 4, "alpha": 4.0}
    config["model"] = {"flux2_lora_config": adapters, "loss": {"lambda_video": 0.25}}
    (source.parent / "config.json").write_text(json.dumps(config))
    convert([source], tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", "official", tmp_path / "out")
    native = torch_tensors(tmp_path / "out" / "model.pt")
    found = native["mot"]
    expected = load_file(folder / "expected_merged.safetensors")
    for name, tensor in expected.items():
        part, _, name = name.partition(".")
        tensor_found = native[part][name]
        np.testing.assert_allclose(tensor_found.numpy(), tensor, atol=1e-6, rtol=0, err_msg=name)
        alias = name.replace(".transformer.", ".")
        if alias in found:
            assert found[alias].data_ptr() == tensor_found.data_ptr()
    assert not [name for name in found if "lora" in name or ".base." in name]
    written = yaml.safe_load((tmp_path / "out" / "train_config.yaml").read_text())
    adapters["enabled"] = False
    assert written == config
    convert([tmp_path / "out" / "model.pt"], tmp_path / "again")
    assert_same(converted(tmp_path / "again")[1], converted(tmp_path / "checkpoint")[1])


def test_what_stood_beside_it_comes_back_with_what_was_given(tmp_path):
    """The config and the statistics come back, with the overrides under the names of --set."""
    pytest.importorskip("torch")
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.pt")
    stats = golden("normalization") / "stats_single.json"
    shutil.copyfile(stats, source.parent / "dataset_stats.json")
    config = json.loads((source.parent / "config.json").read_text())
    del config["action_horizon"], config["pack_proprio_after_text"]
    (source.parent / "config.json").write_text(json.dumps(config))
    given = {"horizon": 5, "pack_proprio_after_text": False, "proprio_position": 7}
    given |= {"normalization": "z-score", "coordinate_dtype": "bfloat16"}
    convert([source], tmp_path / "checkpoint", overrides=given)
    export(tmp_path / "checkpoint", "official", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "dataset_stats.json").read_text())
    assert found == json.loads(stats.read_text())
    written = yaml.safe_load((tmp_path / "out" / "train_config.yaml").read_text())
    assert {**config, **given}.items() <= written.items()
    convert([tmp_path / "out" / "model.pt"], tmp_path / "again")
    (again, trees), (metadata, expected) = (
        converted(tmp_path / "again"),
        converted(tmp_path / "checkpoint"),
    )
    assert again["config"] == metadata["config"]
    assert again["statistics"] == metadata["statistics"]
    assert_same(trees, expected)


@pytest.mark.parametrize("weights", [None, "ema", "params"])
def test_a_training_run_in_the_official_layout_and_back(weights, tmp_path, capsys):
    """The files alone give its averaged weights, its sizes and its normalization."""
    pytest.importorskip("torch")
    run = trained_run()
    export(run, "official", tmp_path / "out", weights=weights)
    assert "has no place for it: autoencoder" in capsys.readouterr().out
    assert torch_tensors(tmp_path / "out" / "model.pt")["step"] == 40
    convert([tmp_path / "out" / "model.pt"], tmp_path / "again")
    (again, trees), (metadata, expected) = converted(tmp_path / "again"), converted(run)
    assert_same(trees["params"], expected[weights or "ema"])
    assert_same(trees["normalizers"], expected["normalizers"])
    for name, value in metadata["config"]["model"].items():
        if name not in ("attention", "remat", "unroll"):
            assert again["config"]["model"][name] == value, name
    assert again["config"]["data"]["normalization"] == metadata["config"]["data"]["normalization"]
    stats = json.loads((tmp_path / "out" / "dataset_stats.json").read_text())
    assert stats["num_transition"] == metadata["statistics"]["metaworld_faucet"]["source"]["frames"]
    action = stats["action"]["default"]
    assert action["global_q01"] == metadata["statistics"]["metaworld_faucet"]["action"]["q01"]
    assert action["stepwise_q01"] == [action["global_q01"]] * 4


def test_positions_in_another_dtype_than_the_weights(tmp_path, capsys):
    """The official code has both in one dtype; another conversion must not assume so."""
    pytest.importorskip("torch")
    convert([golden("imagewam_flux2") / "model.pt"], tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", "official", tmp_path / "out", dtype="bfloat16")
    assert "run the official code with mixed_precision 'no'" in capsys.readouterr().out
    convert([tmp_path / "out" / "model.pt"], tmp_path / "again")
    metadata, trees = converted(tmp_path / "again")
    assert metadata["config"]["model"]["coordinate_dtype"] == "float32"
    assert trees["params"]["proprio_in"]["bias"].dtype == ml_dtypes.bfloat16


def test_parts_that_a_layout_has_no_place_for(tmp_path, capsys):
    text = copy_case(golden("text_qwen3"), tmp_path / "text")
    convert([text], tmp_path / "qwen3")
    for format in TARGETS:
        with pytest.raises(ConversionError, match=rf"has text_encoder; the {format} layout is of"):
            export(tmp_path / "qwen3", format, tmp_path / "out")
    convert([golden("flux2_autoencoder") / "weights.safetensors"], tmp_path / "autoencoder")
    with pytest.raises(ConversionError, match="the official layout is of a whole policy"):
        export(tmp_path / "autoencoder", "official", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(trained_run(), "flux2", tmp_path / "out")
    assert "flux2 layout has no place for it: autoencoder" in capsys.readouterr().out


@pytest.mark.parametrize("format", ["flux2", "diffusers"])
def test_first_weights_of_an_expert_are_named_as_left_out(format, tmp_path, capsys):
    source = copy_case(golden("flux2_transformer"), tmp_path / "source")
    convert([source], tmp_path / "checkpoint", expert="official", overrides={"expert_dim": 32})
    export(tmp_path / "checkpoint", format, tmp_path / "out")
    message = f"not written, the {format} layout has no place for it: first weights of the action"
    assert message in capsys.readouterr().out


def with_changed(checkpoint, to, change):
    """Change the trees or the metadata of a checkpoint."""
    metadata, trees = converted(checkpoint)
    change(metadata, trees)
    checkpoints = Checkpoints(to)
    checkpoints.save(3, trees, metadata)
    checkpoints.close()
    return to


@pytest.mark.parametrize("format", ["official", "flux2", "diffusers"])
def test_numbers_that_are_none(format, tmp_path, monkeypatch):
    """The weights of a run that diverged are not exported."""
    if format == "official":
        pytest.importorskip("torch")
    convert([golden("imagewam_flux2") / "model.safetensors"], tmp_path / "converted")

    def spoil(metadata, trees):
        k = trees["params"]["backbone"]["double_layers"]["image"]["k"]
        k["kernel"] = k["kernel"].copy()
        k["kernel"][1, 3, 5] = np.nan

    with monkeypatch.context() as patch:  # a version that did not look has saved it
        patch.setattr(store, "not_finite", lambda tree: [])
        checkpoint = with_changed(tmp_path / "converted", tmp_path / "checkpoint", spoil)
    shutil.rmtree(tmp_path / "converted")
    name = r"blocks\.1\.(img_attn\.qkv|attn\.to_k)\.weight"
    with pytest.raises(ConversionError, match=rf"{name} holds 1 numbers that are NaN or infinite"):
        export(checkpoint, format, tmp_path / "out")
    assert_nothing_left(tmp_path)


def test_settings_that_are_not_of_these_weights(tmp_path, monkeypatch):
    """It is noticed before the tensors are written, which can take an hour."""
    convert([golden("imagewam_flux2") / "model.safetensors"], tmp_path / "converted")

    def contradict(metadata, trees):
        metadata["official"]["config"]["flux2_params"]["depth"] = 7

    checkpoint = with_changed(tmp_path / "converted", tmp_path / "checkpoint", contradict)
    shutil.rmtree(tmp_path / "converted")
    written = []
    monkeypatch.setattr(export_module, "write_torch_file", lambda *_: written.append(1))
    with pytest.raises(ConversionError, match="double_layers is given as 7, the shapes say 2"):
        export(checkpoint, "official", tmp_path / "out")
    assert not written
    assert_nothing_left(tmp_path)


def test_what_is_there_is_never_overwritten(tmp_path):
    convert([golden("flux2_autoencoder") / "weights.safetensors"], tmp_path / "checkpoint")
    (tmp_path / "out").mkdir()
    export(tmp_path / "checkpoint", "flux2", tmp_path / "out")  # an empty folder is no loss
    before = (tmp_path / "out" / "ae.safetensors").stat()
    for to in (tmp_path / "out", tmp_path / "out" / "ae.safetensors"):
        with pytest.raises(CheckpointError, match=f"{to} is there already"):
            export(tmp_path / "checkpoint", "flux2", to)
    assert (tmp_path / "out" / "ae.safetensors").stat() == before


def assert_nothing_left(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint"]


def test_without_pytorch(tmp_path, monkeypatch):
    case = golden("imagewam_flux2")
    convert([case / "model.safetensors"], tmp_path / "checkpoint")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ConversionError, match=r"needs PyTorch: pip install 'imagewam-jax\[torch\]'"
    ):
        export(tmp_path / "checkpoint", "official", tmp_path / "out")
    assert_nothing_left(tmp_path)


def test_a_disk_that_is_full(tmp_path, monkeypatch):
    """Errors come before anything is written if possible; otherwise nothing is left."""
    convert([golden("flux2_autoencoder") / "weights.safetensors"], tmp_path / "checkpoint")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
        with pytest.raises(CheckpointError, match="4 MB do not fit: 1 MB are free"):
            export(tmp_path / "checkpoint", "diffusers", tmp_path / "out")
    assert_nothing_left(tmp_path)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(export_module, "write_sharded", full)
        with pytest.raises(CheckpointError, match=r"out could not be written: .* No space left"):
            export(tmp_path / "checkpoint", "diffusers", tmp_path / "out")
    assert_nothing_left(tmp_path)


def test_a_checkpoint_of_another_model_than_it_says(tmp_path):
    """Arrays are compared with the config before anything is written."""
    convert([golden("flux2_autoencoder") / "weights.safetensors"], tmp_path / "converted")

    def widen(metadata, trees):
        metadata["config"]["autoencoder"]["width"] = 64

    checkpoint = with_changed(tmp_path / "converted", tmp_path / "checkpoint", widen)
    with pytest.raises(CheckpointError, match=r"arrays are not those that the config speaks of"):
        export(checkpoint, "flux2", tmp_path / "out")


def test_weights_that_are_not_there(tmp_path):
    convert([golden("imagewam_flux2") / "model.safetensors"], tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match=r"no 'ema' in it; it has \['params'\]"):
        export(tmp_path / "checkpoint", "flux2", tmp_path / "out", weights="ema")
    with pytest.raises(CheckpointError, match="no such directory"):
        export(tmp_path / "nowhere", "flux2", tmp_path / "out")


def test_the_command(tmp_path, capsys):
    convert([golden("flux2_autoencoder") / "weights.safetensors"], tmp_path / "checkpoint")
    argv = ["export", str(tmp_path / "checkpoint"), "--format", "diffusers", "--to"]
    assert cli.main([*argv, str(tmp_path / "out"), "--max-shard-bytes", "2000000"]) == 0
    assert "vae: FLUX.2 autoencoder, diffusers layout, 183 tensors" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "vae").glob("*.safetensors"))) == 3
    assert cli.main([*argv, str(tmp_path / "out")]) == 1
    assert "imagewam export: " in capsys.readouterr().err
