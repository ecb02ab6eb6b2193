"""`imagewam convert` on recorded weights of every kind: what it makes, and what it says."""

import datetime
import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from imagewam_jax import cli
from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.errors import CheckpointError, ConversionError, InUseError
from imagewam_jax.files import LOCK_FILE, only_writer
from imagewam_jax.weights.components import COMPONENTS, checkpoint_components
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.layouts.action_init import FRESH
from imagewam_jax.weights.layouts.flux2 import action_expert_rules, flux2_rules
from imagewam_jax.weights.layouts.flux2_autoencoder import COUNTER, flux2_autoencoder_rules
from imagewam_jax.weights.layouts.flux2_diffusers import flux2_diffusers_json, flux2_diffusers_rules
from imagewam_jax.weights.layouts.imagewam import imagewam_rules
from imagewam_jax.weights.layouts.mapping import to_foreign
from imagewam_jax.weights.layouts.qwen3 import is_used, qwen3_rules
from tests.goldens import golden
from tests.weights.foreign import assert_same, change, converted, copy_case, write_shards

RULES = {
    "policy": imagewam_rules,
    "backbone": flux2_rules,
    "autoencoder": flux2_autoencoder_rules,
    "text_encoder": qwen3_rules,
}
# A folder, its weights, what it is, and of which tensors.
CASES = [
    ("flux2_transformer", "weights.safetensors", "backbone"),
    ("flux2_autoencoder", "weights.safetensors", "autoencoder"),
    ("text_qwen3", "weights.safetensors", "text_encoder"),
    ("imagewam_flux2", "model.safetensors", "policy"),
    ("imagewam_flux2_noproprio", "model.safetensors", "policy"),
    ("lora", "lora_merged.safetensors", "backbone"),
]


def part_of(metadata, trees):
    """The only component of a checkpoint: its name, sizes and tree."""
    ((name, sizes),) = checkpoint_components(metadata, set(trees), "checkpoint").items()
    tree = trees[COMPONENTS[name].tree]
    return name, sizes, tree[COMPONENTS[name].path] if COMPONENTS[name].path else tree


@pytest.mark.parametrize(("case", "file", "part"), CASES)
def test_every_kind_is_recognised_and_kept_bit_for_bit(case, file, part, tmp_path):
    """The file has another name, from which nothing can be concluded."""
    source = copy_case(golden(case), tmp_path / "source", file).rename(
        tmp_path / "source" / "renamed.bin"
    )
    convert([source], tmp_path / "out")
    name, sizes, tree = part_of(*converted(tmp_path / "out"))
    assert name == part
    theirs = load_file(source)
    expected = {
        name: tensor
        for name, tensor in theirs.items()
        if name != COUNTER
        and not name.startswith(("mot.mixtures.video.double", "mot.mixtures.video.single"))
        and (part != "text_encoder" or is_used(name, sizes))
    }
    found = to_foreign(RULES[part](sizes), tree)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("case", ["imagewam_flux2", "imagewam_flux2_noproprio"])
def test_a_pt_file_is_the_same_as_its_tensors(case, tmp_path):
    pytest.importorskip("torch")
    convert([golden(case) / "model.pt"], tmp_path / "pt")
    convert([golden(case) / "model.safetensors"], tmp_path / "tensors")
    (pt, trees), (_, expected) = converted(tmp_path / "pt"), converted(tmp_path / "tensors")
    assert_same(trees, expected)
    step = json.loads((golden(case) / "config.json").read_text())["checkpoint"]["step"]
    assert (tmp_path / "pt" / str(step)).is_dir()
    assert pt["provenance"]["sources"][0]["file"] == "model.pt"


def test_several_sources_become_one_checkpoint(tmp_path, capsys):
    """Shards with an index, shards without one, and a single file give the same."""
    source = tmp_path / "transformer"
    transformer = golden("flux2_transformer")
    write_shards(load_file(transformer / "weights.safetensors"), source, 3)
    shutil.copyfile(transformer / "config.json", source / "config.json")
    text = write_shards(load_file(golden("text_qwen3") / "weights.safetensors"), tmp_path / "text")
    (text / "model.safetensors.index.json").unlink()
    shutil.copyfile(golden("text_qwen3") / "hf_config.json", text / "config.json")
    (text / "tokenizer.json").write_text('{"a": "é"}')
    convert([source, golden("flux2_autoencoder") / "weights.safetensors"], tmp_path / "out")
    said = capsys.readouterr().out
    metadata, trees = converted(tmp_path / "out")
    assert set(trees) == {"params", "autoencoder"}
    sources = metadata["provenance"]["sources"]
    assert [s["bytes"] for s in sources[:3]] == [
        p.stat().st_size for p in sorted(source.glob("*.safetensors"))
    ]
    assert len(sources) == 4 and all(len(s["sha256"]) == 64 for s in sources)
    assert metadata["provenance"]["carried"] == {COUNTER: 17}
    assert "FLUX.2 transformer, original layout, 45 tensors" in said
    assert "backbone: in_channels 16, text_dim 48, dim 72, heads 3" in said
    assert "589,584 numbers in float32" in said

    convert([text], tmp_path / "text_out")
    metadata, trees = converted(tmp_path / "text_out")
    assert set(trees) == {"text_encoder"}
    assert metadata["config"]["text"]["sizes"]["rope_theta"] == 1e6
    assert tokenizer(tmp_path / "text_out") == {"tokenizer.json": '{"a": "é"}'}

    # The folder in which a pipeline of diffusers has it.
    (tmp_path / "tokenizer").mkdir()
    (text / "tokenizer.json").rename(tmp_path / "tokenizer" / "tokenizer.json")
    convert([text], tmp_path / "text_out_2")
    assert tokenizer(tmp_path / "text_out_2") == tokenizer(tmp_path / "text_out")


def tokenizer(folder):
    checkpoints, step = open_checkpoint(folder)
    files = checkpoints.restore_json(step, "tokenizer")
    checkpoints.close()
    return files


def test_dtypes(tmp_path):
    """Dtypes are kept, or numbers are cast, rounding to the nearest bfloat16."""
    source = copy_case(golden("flux2_transformer"), tmp_path / "source")
    name = "img_in.weight"
    exact = load_file(source)[name]
    convert([source], tmp_path / "bf16", dtype="bfloat16")
    metadata, trees = converted(tmp_path / "bf16")
    kernel = trees["params"]["backbone"]["image_in"]["kernel"]
    assert kernel.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(kernel, exact.T.astype(ml_dtypes.bfloat16))
    change(source, lambda t: {k: v.astype(ml_dtypes.bfloat16) for k, v in t.items()})
    for dtype, expected in ((None, "bfloat16"), ("float32", "float32")):
        convert([source], tmp_path / str(dtype), dtype=dtype)
        _, again = converted(tmp_path / str(dtype))
        kernel = again["params"]["backbone"]["image_in"]["kernel"]
        assert kernel.dtype.name == expected
        np.testing.assert_array_equal(
            kernel.astype(np.float32), exact.T.astype(ml_dtypes.bfloat16).astype(np.float32)
        )
    assert metadata["provenance"]["dtype"] == "bfloat16"


KINDS = ("checkpoint_unmerged", "checkpoint_merged", "checkpoint_trainable_only")


@pytest.mark.parametrize("kind", KINDS)
def test_lora_checkpoints(kind, tmp_path, capsys):
    """All three official formats end in the same weights; stale aliases are not read."""
    torch = pytest.importorskip("torch")
    folder = golden("lora_checkpoints")
    source = copy_case(folder, tmp_path / "source", f"{kind}.pt")
    sources = [source]
    if kind == "checkpoint_trainable_only":
        whole = torch.load(folder / "checkpoint_unmerged.pt", weights_only=True)["mot"]
        prefix = "mixtures.video.transformer."
        base = {
            name.removeprefix(prefix).replace(".base.weight", ".weight"): tensor.numpy()
            for name, tensor in whole.items()
            if name.startswith(prefix) and "lora_" not in name
        }
        sources.append(tmp_path / "source" / "base.safetensors")
        save_file(base, sources[-1])
    convert(sources, tmp_path / "out")
    if kind == "checkpoint_trainable_only":  # with its base in the other layout
        sources[-1] = in_diffusers_layout(sources[-1], tmp_path / "diffusers")
        convert(sources, tmp_path / "again")
        assert_same(converted(tmp_path / "again")[1], converted(tmp_path / "out")[1])
    name, sizes, tree = part_of(*converted(tmp_path / "out"))
    assert name == "policy"
    expected = load_file(folder / "expected_merged.safetensors")
    found = to_foreign(imagewam_rules(sizes), tree)
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, atol=1e-6, rtol=0, err_msg=name)
    said = capsys.readouterr().out
    assert {
        "checkpoint_unmerged": "LoRA factors of rank 4, to be merged, 36 aliases",
        "checkpoint_merged": "leftovers under alias names are not read, 36 aliases",
        "checkpoint_trainable_only": "rank 4, to be merged, trained tensors only, no aliases",
    }[kind] in said


def test_alpha_that_is_not_the_rank(tmp_path):
    """It scales the factors; it comes from the file beside the weights, or is set by the user."""
    source = copy_case(golden("lora_alpha"), tmp_path / "source", "lora_unmerged.safetensors")
    convert([source], tmp_path / "out")
    _, sizes, tree = part_of(*converted(tmp_path / "out"))
    expected = load_file(golden("lora_alpha") / "lora_merged.safetensors")
    for name, tensor in to_foreign(flux2_rules(sizes), tree).items():
        np.testing.assert_allclose(tensor, expected[name], atol=1e-6, rtol=0, err_msg=name)

    config = json.loads((source.parent / "config.json").read_text())
    alpha = config.pop("alpha")
    (source.parent / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConversionError, match=r"lora_unmerged.* rank 3; .* --set lora_alpha="):
        convert([source], tmp_path / "without")
    convert([source], tmp_path / "given", overrides={"lora_alpha": alpha})
    assert_same(converted(tmp_path / "given")[1], converted(tmp_path / "out")[1])


@pytest.mark.parametrize("recipe", ["official", "aligned"])
def test_first_weights_of_an_expert(recipe, tmp_path):
    source = copy_case(golden("action_init"), tmp_path / "source", "flux2_weights.safetensors")
    convert([source], tmp_path / "out", expert=recipe, overrides={"expert_dim": 32})
    metadata, trees = converted(tmp_path / "out")
    assert set(trees["params"]) == {"backbone", "expert"}
    assert set(trees["params"]["expert"]) == {
        "time_in",
        "double_modulation",
        "single_modulation",
        "double_layers",
        "single_layers",
    }
    sizes = COMPONENTS["backbone"].config(metadata["config"])
    expert = COMPONENTS["expert"].config(metadata["config"])
    rules = [r for r in action_expert_rules(expert, sizes) if not r.name.startswith(FRESH)]
    found = to_foreign(rules, trees["params"]["expert"])
    expected = load_file(golden("action_init") / "action_init_narrow.safetensors")
    assert found.keys() == expected.keys()
    same = [np.allclose(found[k], v, atol=5e-5, rtol=0) for k, v in expected.items()]
    assert all(same) if recipe == "official" else not all(same)
    assert metadata["provenance"]["expert"] == recipe


def test_settings_and_statistics_beside_an_official_checkpoint(tmp_path):
    """In a run's folder, the weights are two levels below its config."""
    pytest.importorskip("torch")
    run = tmp_path / "run"
    (run / "checkpoints" / "weights").mkdir(parents=True)
    weights = run / "checkpoints" / "weights" / "step_001234.pt"
    shutil.copyfile(golden("imagewam_flux2") / "model.pt", weights)
    official = {
        "model": {
            "loss": {"lambda_video": 0.25, "lambda_action": 2.0},
            "video_scheduler": {"train_shift": 3.0, "infer_shift": 4.0},
            "action_scheduler": {"train_shift": 2.0, "infer_shift": 1.5},
            "action_dit_config": {"max_action_horizon": 32},
            "pack_proprio_after_text": True,
        },
        "data": {"train": {"processor": {"default_mode": "z-score"}}},
        # The public models are known by their sizes; a small one is not.
        "rope_axes": [4, 4, 4, 4],
        "rope_theta": 2000,
        "date": datetime.date(2026, 7, 30),  # of which JSON knows nothing
    }
    (run / "config.yaml").write_text(yaml.safe_dump(official))
    shutil.copyfile(golden("normalization") / "stats_single.json", run / "dataset_stats.json")
    convert([weights], tmp_path / "out", overrides={"horizon": 6})
    metadata, trees = converted(tmp_path / "out")
    model = metadata["config"]["model"]
    assert (model["target_loss_weight"], model["action_loss_weight"]) == (0.25, 2.0)
    assert model["target_flow"] == {"train_shift": 3.0, "sample_shift": 4.0}
    assert model["action_flow"] == {"train_shift": 2.0, "sample_shift": 1.5}
    assert model["expert"]["max_horizon"] == 32 and model["horizon"] == 6
    assert model["coordinate_dtype"] == "float32"  # of the parameters of this one
    assert metadata["config"]["data"]["normalization"] == "z-score"
    assert metadata["config"]["text"]["template"].startswith("A video recorded from a robot")
    assert metadata["official"]["config"]["model"] == official["model"]
    stats = json.loads((run / "dataset_stats.json").read_text())
    assert metadata["official"]["statistics"] == stats
    mean = np.array(stats["action"]["default"]["global_mean"])
    np.testing.assert_allclose(metadata["statistics"]["official"]["action"]["mean"], mean)
    np.testing.assert_allclose(trees["normalizers"]["actions"]["center"][0], mean, rtol=1e-6)
    std = np.array(stats["state"]["default"]["global_std"])
    np.testing.assert_allclose(
        trees["normalizers"]["state"]["scale"][0], 1 / (std + 1e-8), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("dtype", "fact", "expected"),
    [
        ("bfloat16", {}, "bfloat16"),
        ("float16", {}, "float32"),
        ("float32", {"mixed_precision": "bf16"}, "bfloat16"),
        ("bfloat16", {"torch_dtype": "torch.float32"}, "float32"),
        ("float32", {"coordinate_dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_positions_are_in_the_dtype_of_training(tmp_path, dtype, fact, expected):
    """It is the parameters' dtype, unless the metadata says that training had another one."""
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")
    change(source, lambda t: {k: v.astype(getattr(ml_dtypes, dtype, dtype)) for k, v in t.items()})
    config = json.loads((source.parent / "config.json").read_text())
    (source.parent / "config.json").write_text(json.dumps(config | fact))
    convert([source], tmp_path / "out")
    assert converted(tmp_path / "out")[0]["config"]["model"]["coordinate_dtype"] == expected


def test_a_config_of_the_users_must_speak_of_these_weights(tmp_path):
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")
    convert([source], tmp_path / "out")
    config = converted(tmp_path / "out")[0]["config"]
    config["data"] |= {"dataset": "mine", "normalization": "q01/q99"}
    config["model"]["remat"] = "none"
    convert([source], tmp_path / "mine", config=config)
    metadata = converted(tmp_path / "mine")[0]
    assert metadata["config"]["data"]["dataset"] == "mine"
    assert metadata["config"]["model"]["remat"] == "none"
    config["model"]["expert"]["action_dim"] = 9
    with pytest.raises(ConversionError, match=r"model.expert.action_dim=9, .* one with 7"):
        convert([source], tmp_path / "other", config=config)


CONFIG = """
from imagewam_jax.config.defaults import official_recipe

def get_config():
    config = official_recipe()
    config.data.dataset = "mine"
    config.data.cameras = ("primary", "wrist")
    config.data.layout = "row"
    config.model.backbone = {backbone}
    config.model.expert = {expert}
    config.model.proprio_dim = 8
    config.model.horizon = 6
    config.model.coordinate_dtype = "float32"
    return config
"""


def test_a_config_file_on_the_command_line(tmp_path, capsys):
    """Weights do not say what the policy sees."""
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")
    assert cli.main(["convert", str(source), "--to", str(tmp_path / "out")]) == 0
    assert "without --config" in capsys.readouterr().out
    model = converted(tmp_path / "out")[0]["config"]["model"]
    file = tmp_path / "config.py"
    file.write_text(
        CONFIG.replace("{backbone}", repr(model["backbone"] | {"rope_axes": (4, 4, 4, 4)})).replace(
            "{expert}", repr(model["expert"])
        )
    )
    arguments = ["convert", str(source), f"--config={file}", "--to"]
    assert cli.main([*arguments, str(tmp_path / "with")]) == 0
    assert "without --config" not in capsys.readouterr().out
    config = converted(tmp_path / "with")[0]["config"]
    assert config["data"]["cameras"] == ["primary", "wrist"] and config["data"]["layout"] == "row"
    assert config["model"] == model
    change = "--config.model.horizon=5"
    assert cli.main([*arguments, str(tmp_path / "other"), change]) == 1
    assert (
        "the config has model.horizon=5, the weights are of one with 6" in capsys.readouterr().err
    )


def in_diffusers_layout(source: Path, folder: Path) -> Path:
    """A transformer as diffusers would have it."""
    convert([source], folder / "checkpoint")
    metadata, trees = converted(folder / "checkpoint")
    sizes = COMPONENTS["backbone"].config(metadata["config"])
    tensors = to_foreign(flux2_diffusers_rules(sizes), trees["params"]["backbone"])
    write_shards(tensors, folder / "transformer")
    (folder / "transformer" / "config.json").write_text(json.dumps(flux2_diffusers_json(sizes)))
    return folder / "transformer"


def test_an_expert_from_either_layout_of_a_transformer(tmp_path):
    source = copy_case(golden("action_init"), tmp_path / "source", "flux2_weights.safetensors")
    other = in_diffusers_layout(source, tmp_path / "diffusers")
    for name, path in (("original", source), ("other", other)):
        convert([path], tmp_path / name, expert="official", overrides={"expert_dim": 32})
    assert_same(converted(tmp_path / "other")[1], converted(tmp_path / "original")[1])


def test_a_prefix_of_single_file_exports(tmp_path):
    source = copy_case(golden("flux2_transformer"), tmp_path / "source")
    convert([source], tmp_path / "plain")
    change(source, lambda t: {f"model.diffusion_model.{k}": v for k, v in t.items()})
    convert([source], tmp_path / "prefixed")
    assert_same(converted(tmp_path / "prefixed")[1], converted(tmp_path / "plain")[1])


def test_nothing_is_written_twice(tmp_path):
    source = copy_case(golden("flux2_transformer"), tmp_path / "source")
    convert([source], tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"out has a checkpoint of step 0 already"):
        convert([source], tmp_path / "out")


@pytest.mark.parametrize("to", ["run", "run/checkpoints"])
def test_a_folder_that_another_process_writes(to, tmp_path):
    """Also the checkpoints of a run, whose lock is in the run's folder."""
    source = golden("flux2_autoencoder") / "weights.safetensors"
    with only_writer(tmp_path / "run" / LOCK_FILE, "imagewam train"):
        with pytest.raises(InUseError, match=rf"^{tmp_path / 'run'} is in use by process .* train"):
            convert([source], tmp_path / to)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]
    convert([source], tmp_path / to)
    assert [path.name for path in (tmp_path / to).iterdir()] == ["0"]
