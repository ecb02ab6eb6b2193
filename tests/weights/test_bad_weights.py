"""Bad foreign weights: each mistake is one clear error and leaves no checkpoint."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagewam_jax import cli
from imagewam_jax.errors import ConversionError, DataError
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.overrides import parse_overrides
from tests.goldens import golden
from tests.weights.foreign import change, converted, copy_case, write_shards

NAME = "single_blocks.1.linear1.weight"


@pytest.fixture
def source(tmp_path) -> Path:
    return copy_case(golden("flux2_transformer"), tmp_path / "source")


@pytest.fixture
def refused(tmp_path):
    """A function that expects `convert` to fail and leave nothing; it returns the message."""

    def run(*sources: Path, **options) -> str:
        out = tmp_path / "out"
        with pytest.raises(ConversionError) as error:
            convert(sources, out, **options)
        assert not out.exists() or not [p for p in out.iterdir() if p.name.isdigit()]
        return str(error.value)

    return run


def edited(**changes):
    return lambda tensors: tensors | changes


def test_a_missing_tensor(source, refused):
    change(source, lambda t: {k: v for k, v in t.items() if k != NAME})
    assert f"1 tensors missing ({NAME}), 0 unexpected" in refused(source)
    assert str(source) in refused(source)


def test_a_missing_tensor_that_tells_a_size(source, refused):
    change(source, lambda t: {k: v for k, v in t.items() if k != "txt_in.weight"})
    assert re.search(rf"{source}: no txt_in.weight, whose shape tells", refused(source))


def test_an_unexpected_tensor(source, refused):
    change(source, edited(**{"extra.weight": np.zeros(3, np.float32)}))
    assert "0 tensors missing , 1 unexpected (extra.weight)" in refused(source)


def test_a_layer_too_many(source, refused):
    """One tensor of a further layer makes all its others missing, unless a config says better."""
    last = "img_mlp.2.weight"
    change(source, lambda t: t | {f"double_blocks.2.{last}": t[f"double_blocks.1.{last}"]})
    assert "double_layers is given as 2, the shapes say 3" in refused(source)
    config = source.parent / "config.json"
    params = json.loads(config.read_text())["flux2_params"]
    rope = {"rope_axes": params["axes_dim"], "rope_theta": params["theta"]}
    config.unlink()
    assert "11 tensors missing (double_blocks.2.img_attn" in refused(source, overrides=rope)


@pytest.mark.parametrize("shape", [(3, 3), (72,), ()])
def test_a_misshapen_tensor(source, refused, shape):
    change(source, edited(**{NAME: np.zeros(shape, np.float32)}))
    expected = re.escape(f"{source}: {NAME} has shape {shape}, expected (648, 72)")
    assert re.search(expected, refused(source))


@pytest.mark.parametrize("dtype", [np.int8, np.float64, np.int32])
def test_a_dtype_that_no_weight_has(source, refused, dtype):
    change(source, lambda t: t | {NAME: t[NAME].astype(dtype)})
    message = f"{source}: {NAME} is of {np.dtype(dtype)}, expected bfloat16 and float16 and float32"
    assert message in refused(source)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_numbers_that_are_none(source, refused, bad, dtype):
    """They are noticed during streaming, when other tensors are already written."""
    import ml_dtypes

    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))

    def spoil(tensors):
        tensors = {k: v.astype(kind) for k, v in tensors.items()}
        tensors[NAME][5, 7] = bad
        return tensors

    change(source, spoil)
    assert f"{source}: {NAME} holds 1 numbers that are NaN or infinite" in refused(source)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (NAME, slice(None)),
        (NAME, slice(144, 216)),  # the values of attention alone
        ("double_blocks.1.txt_attn.norm.key_norm.scale", slice(None)),
    ],
)
def test_weights_that_are_zero(source, refused, name, part):
    def spoil(tensors):
        tensors[name][part] = -0.0
        return tensors

    change(source, spoil)
    assert f"{source}: {name} is zero in all of its numbers: a download that" in refused(source)


def test_a_download_that_stopped_in_a_file_of_its_full_size(source, refused):
    """The file is zero from within its last matrix to its end."""
    content = source.read_bytes()
    source.write_bytes(content[:-5000] + bytes(5000))
    assert f"{source}: ends in zeros, from within txt_in.weight: a download" in refused(source)


def test_what_may_be_zero(tmp_path):
    """Biases, means and LoRA's B; but not its A, nor what it is added to."""
    source = copy_case(golden("lora"), tmp_path / "source", "lora_unmerged.safetensors")
    layer = "double_blocks.0.img_attn.qkv"
    whole = load_file(source)
    save_file(whole | {f"{layer}.lora_B": np.zeros_like(whole[f"{layer}.lora_B"])}, source)
    convert([source], tmp_path / "lora")
    for part in (".lora_A", ".base.weight"):
        save_file(whole | {layer + part: np.zeros_like(whole[layer + part])}, source)
        with pytest.raises(ConversionError, match=f"{layer}{part} is zero in all of its numbers"):
            convert([source], tmp_path / "out")
    autoencoder = copy_case(golden("flux2_autoencoder"), tmp_path / "autoencoder")
    zero = ("bn.running_mean", "encoder.conv_in.bias")
    change(autoencoder, lambda t: t | {name: np.zeros_like(t[name]) for name in zero})
    convert([autoencoder], tmp_path / "zero")
    tree = converted(tmp_path / "zero")[1]["autoencoder"]
    assert not np.any(tree["encoder"]["conv_in"]["bias"])
    change(autoencoder, lambda t: t | {"bn.running_var": np.zeros_like(t["bn.running_var"])})
    with pytest.raises(ConversionError, match=r"bn.running_var is zero"):
        convert([autoencoder], tmp_path / "out")


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.001, 0.0])
def test_a_truncated_file(source, refused, keep):
    data = source.read_bytes()
    source.write_bytes(data[: int(keep * len(data))])
    expected = "not a whole safetensors file: " if keep else "is an empty file: download it again"
    assert f"{source}: {expected}" in refused(source)
    if keep >= 0.5:
        assert f"cut off, {int(keep * len(data)):,} of {len(data):,} bytes" in refused(source)


def test_a_file_of_something_else(tmp_path, refused):
    (tmp_path / "notes.txt").write_text("weights? none.")
    message = "notes.txt: is a text that begins with 'weights? none.', not weights"
    assert message in refused(tmp_path / "notes.txt")
    assert "no such file or folder" in refused(tmp_path / "gone.safetensors")
    (tmp_path / "empty").mkdir()
    assert "no safetensors or PyTorch file of weights in it; found []" in refused(
        tmp_path / "empty"
    )


def test_an_index_that_names_an_absent_shard(source, tmp_path, refused):
    folder = write_shards(load_file(source), tmp_path / "shards", 3)
    gone = folder / "model-00002-of-00003.safetensors"
    gone.unlink()
    assert f"{gone}: missing, but model.safetensors.index.json names it" in refused(folder)


def test_an_index_that_does_not_fit_its_files(source, tmp_path, refused):
    folder = write_shards(load_file(source), tmp_path / "shards")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    moved = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    moved["weight_map"][NAME] = next(f for f in files if f != index["weight_map"][NAME])
    path.write_text(json.dumps(moved))
    assert f"{NAME} should be in {moved['weight_map'][NAME]}, it is in" in refused(folder)
    del index["weight_map"][NAME]
    path.write_text(json.dumps(index))
    assert f"1 tensors are not both in the index and in the files, such as {NAME}" in refused(
        folder
    )
    path.write_text("{")
    assert "not an index of files of weights" in refused(folder)


def test_one_tensor_in_two_files(source, tmp_path, refused):
    folder = write_shards(load_file(source), tmp_path / "shards")
    (folder / "model.safetensors.index.json").unlink()
    save_file({NAME: np.zeros(1, np.float32)}, folder / "more.safetensors")
    assert f"{NAME} is in both" in refused(folder)


def test_weights_of_another_kind(tmp_path, refused):
    save_file({"conv.weight": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    message = refused(tmp_path / "other.safetensors")
    assert "1 tensors (conv.weight, ...) of no known layout; known are: FLUX.2 transf" in message


def test_a_guidance_embedding(refused):
    case = golden("flux2_transformer_guidance") / "weights.safetensors"
    assert f"{case}: these weights have a guidance embedding" in refused(case)


def test_sizes_that_shapes_do_not_tell(source, refused):
    (source.parent / "config.json").unlink()
    message = refused(source)
    assert f"{source}: FLUX.2 transformer: no public model has these sizes" in message
    assert "--set rope_axes=... --set rope_theta=..." in message
    assert "rope_axes (4, 4) must add up" in refused(
        source, overrides={"rope_axes": [4, 4], "rope_theta": 100}
    )


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hidden_size", 96, "flux2_params: dim is given as 96, the shapes say 72"),
        ("depth", 3, "flux2_params: double_layers is given as 3, the shapes say 2"),
        ("num_heads", 4, "flux2_params: heads is given as 4, the shapes say 3"),
    ],
)
def test_a_config_of_other_weights(source, refused, key, value, message):
    path = source.parent / "config.json"
    config = json.loads(path.read_text())
    config["flux2_params"][key] = value
    path.write_text(json.dumps(config))
    assert f"{source}: {message}" in refused(source)
    path.write_text("{")
    assert f"{path}: cannot be read" in refused(source)
    path.write_text("[1]")
    assert f"{path}: holds a list, expected a dictionary" in refused(source)


def test_two_of_a_kind(source, refused):
    assert f"{source} and {source} are both a backbone" in refused(source, source)


def test_the_wrong_text_encoder(source, tmp_path, refused):
    text = copy_case(golden("text_qwen3"), tmp_path / "text")
    message = refused(source, text)
    assert "features of 96 channels, the transformer takes 48" in message
    assert "klein 9B 12288, of Qwen/Qwen3-8B" in message


@pytest.mark.parametrize(
    ("change_", "message"),
    [
        ({"hidden_size": 64}, "dim is given as 64, the shapes say 32"),
        ({"attention_bias": True}, "attention_bias is given as True"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps is given as 1e-05"),
        ({"model_type": "qwen2"}, "model_type is given as qwen2"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope_type is given as yarn"),
    ],
)
def test_a_qwen_of_another_kind(tmp_path, refused, change_, message):
    text = copy_case(golden("text_qwen3"), tmp_path / "text")
    config = json.loads((golden("text_qwen3") / "hf_config.json").read_text())
    (text.parent / "config.json").write_text(json.dumps(config | change_))
    assert f"{text}: config.json: {message}" in refused(text)


def test_a_qwen_with_too_few_layers(tmp_path, refused):
    text = copy_case(golden("text_qwen3"), tmp_path / "text")
    change(text, lambda t: {k: v for k, v in t.items() if not k.startswith("model.layers.2")})
    message = refused(text)
    assert "this Qwen3 has 20 layers; features are taken after (9, 18, 27)" in message


def test_an_expert_needs_a_transformer_alone(source, refused):
    case = golden("flux2_autoencoder") / "weights.safetensors"
    assert "given are ['autoencoder']" in refused(case, expert="official")
    assert "unknown recipe 'best'" in refused(source, expert="best")


def test_an_incomplete_adapter(tmp_path, refused):
    source = copy_case(golden("lora"), tmp_path / "source", "lora_unmerged.safetensors")
    layer = "double_blocks.0.img_attn.qkv"
    whole = load_file(source)
    save_file({k: v for k, v in whole.items() if k != f"{layer}.lora_B"}, source)
    assert f"{layer}.base.weight has no lora_B" in refused(source)
    save_file({k: v for k, v in whole.items() if k != f"{layer}.base.weight"}, source)
    assert f"{layer}.lora_A has no base weight" in refused(source)
    save_file(whole | {f"{layer}.lora_A": np.zeros((5, 48), np.float32)}, source)
    assert f"{layer} is (144, 48), its factors are B (144, 4) and A (5, 48)" in refused(source)


def test_an_alias_of_nothing(tmp_path, refused):
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")
    name = "mot.mixtures.video.double_blocks.7.img_attn.qkv.weight"
    change(source, edited(**{name: np.zeros(3, np.float32)}))
    assert f"unexpected tensor {name}" in refused(source)


def test_trained_tensors_need_what_they_were_trained_from(refused):
    pytest.importorskip("torch")
    case = golden("lora_checkpoints") / "checkpoint_trainable_only.pt"
    assert f"{case}: holds only what was trained; give the FLUX.2 weights" in refused(case)


class Hostile:
    """An object that runs a command when it is unpickled without care."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize(
    ("zipped", "expected"),
    [
        (
            True,
            r"cannot read it as weights alone, without running code from it: .* (posix|nt).system",
        ),
        (False, "in the format that PyTorch had before 1.6, .*; save it again with PyTorch 1.6"),
    ],
)
def test_a_pickle_that_runs_code(tmp_path, refused, zipped, expected):
    """The code is not run from the zip format of today's PyTorch, nor from the pickle of old
    versions. It does run in a careless load, which PyTorch's own message advises."""
    torch = pytest.importorskip("torch")
    proof, path = tmp_path / "it-ran", tmp_path / "model.pt"
    hostile = {"mot": Hostile(f"touch {proof}")}
    torch.save(hostile, path, _use_new_zipfile_serialization=zipped)
    torch.load(path, weights_only=False)
    proof.unlink()
    message = refused(path)
    assert re.search(f"{path}: .*{expected}", message) and "weights_only" not in message
    assert not proof.exists()


def test_a_pt_file_that_is_no_dictionary(tmp_path, refused):
    torch = pytest.importorskip("torch")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    assert "holds a list, expected a dictionary of tensors" in refused(tmp_path / "list.pt")
    torch.save({"mot": {"a": torch.zeros(3, dtype=torch.complex64)}}, tmp_path / "complex.pt")
    assert "mot.a is of complex64, which no weight is" in refused(tmp_path / "complex.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "list.pt").read_bytes()[:-40])
    assert "is cut off: a .pt file (or another zip archive) without" in refused(tmp_path / "cut.pt")


@pytest.mark.parametrize(
    ("statistics", "given", "message"),
    [
        ({}, {}, r"dataset_stats.json has no 'action'; it has \[\]"),
        ("stats_per_embodiment.json", {}, r"embodiments .*: give one as --set embodiment="),
        ("stats_multi.json", {}, "dataset_stats.json has 9 state dimensions, the weights have 8"),
    ],
)
def test_statistics_that_do_not_fit(tmp_path, refused, statistics, given, message):
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")
    if isinstance(statistics, str):
        statistics = json.loads((golden("normalization") / statistics).read_text())
    (source.parent / "dataset_stats.json").write_text(json.dumps(statistics))
    assert re.search(message, refused(source, overrides={"normalization": "min/max", **given}))


def test_the_command_line_says_it_in_a_line(source, tmp_path, capsys):
    change(source, lambda t: {k: v for k, v in t.items() if k != NAME})
    arguments = ["convert", str(source), "--to", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("imagewam")]
    assert NAME in line
    assert cli.main([*arguments, "--set", "rope_thet=3"]) == 1
    assert (
        "--set rope_thet=3: expected NAME=VALUE with one of ['rope_axes'" in capsys.readouterr().err
    )


def test_a_horizon_beyond_the_experts_limit(tmp_path, refused):
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")
    assert "max_horizon=8 contradicts" in refused(source, overrides={"max_horizon": 8})
    config = json.loads((source.parent / "config.json").read_text())
    (source.parent / "config.json").write_text(json.dumps({**config, "action_horizon": 65}))
    assert f"{source}: horizon 65 is beyond the expert's limit 64" in refused(source)
    unpacked = {**config, "pack_proprio_after_text": False}
    (source.parent / "config.json").write_text(json.dumps(unpacked))
    assert "give the padded text length" in refused(source)


@pytest.mark.parametrize("step", ["../../elsewhere", -3, 1.5, True, "7"])
def test_a_step_that_is_no_count(tmp_path, refused, step):
    """It would become the name of a folder."""
    torch = pytest.importorskip("torch")
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.pt")
    whole = torch.load(source, weights_only=True)
    torch.save(whole | {"step": step}, source)
    assert f"{source}: step is {step!r}, expected a count" in refused(source)
    assert not list(tmp_path.rglob("elsewhere"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rope_theta", "expected NAME=VALUE"),
        ("rope_theta=abc", "not a value of rope_theta (base of the RoPE wavelengths)"),
        ("rope_theta=", "not a value of rope_theta"),
        ("rope_axes=4,x", "not a value of rope_axes"),
        ("horizon=1.5", "not a value of horizon"),
        ("expert_scale=0", "not a value of expert_scale"),
        ("coordinate_dtype=float16", "not a value of coordinate_dtype"),
    ],
)
def test_a_setting_that_is_none(setting, message):
    with pytest.raises(ConversionError, match=re.escape(f"--set {setting}: {message}")):
        parse_overrides([setting])


def test_settings():
    given = parse_overrides(["rope_theta=2e3", "rope_axes=4", "expert_scale=false", "horizon=6"])
    assert given == {"rope_theta": 2000.0, "rope_axes": [4], "expert_scale": False, "horizon": 6}
    with pytest.raises(ConversionError, match="horizon is given twice"):
        parse_overrides(["horizon=6", "horizon=6"])


def test_a_setting_that_contradicts_the_files(source, tmp_path, refused):
    message = "--set rope_theta=7.0 contradicts flux2_params.theta=2000 of the file beside"
    assert message in refused(source, overrides={"rope_theta": 7.0})
    # Meant for one source, but another has it otherwise.
    text = copy_case(golden("text_qwen3"), tmp_path / "text")
    message = "--set rope_theta=2000.0 contradicts qwen3.rope_theta=1000000.0"
    assert message in refused(text, overrides={"rope_theta": 2000.0})


def test_a_setting_that_nothing_needs(source, refused):
    assert "--set expert_dim=...: nothing in these weights" in refused(
        source, overrides={"expert_dim": 32}
    )


def test_normalisation_that_is_unknown_or_contradicts(tmp_path):
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")
    with pytest.raises(DataError, match="normalisation mode 'bogus'"):
        convert([source], tmp_path / "out", overrides={"normalization": "bogus"})
    convert([source], tmp_path / "plain")
    config = converted(tmp_path / "plain")[0]["config"]
    config["data"]["normalization"] = "min/max"
    path = source.parent / "config.json"
    facts = json.loads(path.read_text()) | {"processor": {"default_mode": "z-score"}}
    path.write_text(json.dumps(facts))
    message = "data.normalization='min/max', the training .* processor.default_mode='z-score'"
    with pytest.raises(ConversionError, match=message):
        convert([source], tmp_path / "out", config=config)
    given = {"normalization": "min/max"}
    convert([source], tmp_path / "out", config=config, overrides=given)
    assert converted(tmp_path / "out")[0]["config"]["data"]["normalization"] == "min/max"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s["action"]["default"]["global_std"].__setitem__(2, float("nan")), "global_std"),
        (lambda s: s["action"]["default"]["global_min"].pop(), "global_"),
        (lambda s: s["state"].update(default=3), "state: "),
        (lambda s: s["state"]["default"].pop("global_q01"), "global_q01"),
        (lambda s: s.update(type="per_embodiment"), "--set embodiment="),
        (lambda s: s.update(action=[1]), "no 'action'"),
    ],
)
def test_statistics_that_are_none(tmp_path, refused, edit, message):
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors")
    statistics = json.loads((golden("normalization") / "stats_single.json").read_text())
    edit(statistics)
    (source.parent / "dataset_stats.json").write_text(json.dumps(statistics))
    assert re.search(f"dataset_stats.json.*{re.escape(message)}", refused(source))


def test_facts_of_the_wrong_kind(source, refused):
    path = source.parent / "config.json"
    config = json.loads(path.read_text())
    config["flux2_params"]["theta"] = "2e3"  # as YAML reads a number without a point
    path.write_text(json.dumps(config))
    assert "rope_theta is '2e3', expected float" in refused(source)
