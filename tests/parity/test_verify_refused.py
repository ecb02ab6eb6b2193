"""`imagewam verify` on recordings that it refuses, or that have another form than ours."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagewam_jax import cli
from imagewam_jax.errors import ConversionError
from imagewam_jax.parity.verify import verify
from tests.goldens import golden
from tests.parity.recordings import converted, copy_of, edit, names_of, reasons


@pytest.mark.parametrize(
    ("checkpoint", "case", "message"),
    [
        ("text_qwen3", "flux2_transformer", r"nothing in it could be compared: transformer: needs"),
        (
            "flux2_transformer",
            "text_qwen3",
            r"text encoder: needs the text_encoder of a checkpoint",
        ),
        ("imagewam_flux2", "lora", r"io.safetensors: ctx is 24 wide, .* transformer takes 48: it"),
        ("imagewam_flux2", "imagewam_flux2_noproprio", r"text_hidden_states is 24 wide, .* 48"),
        (
            "imagewam_flux2",
            "imagewam_omnigen2",
            r"recorded of omnigen2, the checkpoint is of flux2",
        ),
        (  # without an autoencoder, whose kinds come first
            "policy_alone",
            "imagewam_omnigen2",
            r"recorded of omnigen2, the checkpoint is of flux2",
        ),
        (
            "flux2_autoencoder",
            "imagewam_omnigen2",
            r"latents of omnigen2.s autoencoder, the checkpoint has another kind",
        ),
        ("flux2_transformer", "flux2_transformer_guidance", r"with a guidance embedding"),
        ("flux2_transformer", "scheduler", r"nothing in it could be compared: tables.safetensors"),
        ("flux2_transformer", "no_such_case", r"no such folder of recorded tensors"),
    ],
)
def test_a_recording_of_something_else(checkpoint, case, message, capsys):
    """One line that says what does not fit, and an exit code that is not that of a pass."""
    path = converted(checkpoint)
    references = golden("lora").parent / case
    capsys.readouterr()
    assert cli.main(["verify", str(path), str(references)]) == 1
    out, error = capsys.readouterr()
    line = error.strip().splitlines()[-1]
    assert line.startswith("imagewam verify: ") and re.search(message, line), line
    assert "all pass" not in out


def test_a_recording_that_is_damaged(tmp_path):
    def not_a_number(tensors):
        tensors["pred_with_ref"][0, 0, 0] = np.nan

    def no_times(tensors):
        del tensors["timesteps"]

    def no_reference_ids(tensors):
        del tensors["ref_ids"]

    def fewer_positions(tensors):
        tensors["x_ids"] = tensors["x_ids"][:, :5]

    for name, change, message in (
        ("nan", not_a_number, "pred_with_ref holds 1 numbers that are NaN"),
        ("times", no_times, "nothing in it could be compared"),
        ("ids", no_reference_ids, "io.safetensors: no ref_ids"),
        ("positions", fewer_positions, "io.safetensors: transformer cannot be repeated: "),
    ):
        without = ("rope.safetensors", "weights.safetensors")
        references = copy_of("flux2_transformer", tmp_path / name, without=without)
        edit(references / "io.safetensors", change)
        with pytest.raises(ConversionError, match=message):
            verify(converted("flux2_transformer"), references)

    references = copy_of("flux2_transformer", tmp_path / "config", without=("config.json",))
    with pytest.raises(ConversionError, match=r"config.json: no sampler.guidance_scale"):
        verify(converted("flux2_transformer"), references)
    (tmp_path / "config" / "config.json").write_text("{")
    with pytest.raises(ConversionError, match=r"config.json: cannot be read"):
        verify(converted("flux2_transformer"), references)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConversionError, match=r"no recording in it or in the folders"):
        verify(converted("flux2_transformer"), tmp_path / "empty")


def test_a_tensor_of_another_shape_fails(tmp_path):
    def cut(tensors):
        tensors["pred_without_ref"] = tensors["pred_without_ref"][:, :3]
        tensors["pred_new"] = tensors["pred_without_ref"][:0]

    without = ("rope.safetensors", "weights.safetensors")
    references = copy_of("flux2_transformer", tmp_path / "case", without=without)
    edit(references / "io.safetensors", cut)
    report = verify(converted("flux2_transformer"), references)
    (failed,) = [check for check in report.checks if not check.passed]
    assert (failed.name, failed.problem) == ("pred_without_ref", "ours is [2, 12, 16]")
    assert json.dumps(report.to_json(), allow_nan=False)
    assert reasons(report)["io.safetensors: pred_new"] == "nothing here repeats it"


def test_padding_before_valid_text(tmp_path):
    def turned(tensors):
        tensors["attention_mask"] = tensors["attention_mask"][:, ::-1].copy()

    references = copy_of("text_qwen3", tmp_path / "case", without=("weights.safetensors",))
    edit(references / "io.safetensors", turned)
    with pytest.raises(ConversionError, match="attention_mask has padding before valid text"):
        verify(converted("text_qwen3"), references)


def test_where_the_result_cannot_be_written(tmp_path, capsys):
    path, references = converted("flux2_transformer"), golden("flux2_transformer")
    file = tmp_path / "absent" / "result.json"
    assert cli.main(["verify", str(path), str(references), "--json", str(file)]) == 1
    assert "no such folder to write it in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [(".safetensors", "float32"), (".npz", "float64"), (".pt", "float32")],
)
def test_a_state_without_steps_in_any_file(suffix, dtype, tmp_path):
    """As a policy in use records it: one state for each sample, and one sample here."""
    folder = acting_alone(tmp_path)
    edit(folder / "infer.safetensors", lambda t: t | {STATE: t[STATE][:, 0].copy()})
    as_recorded(folder / "infer.safetensors", suffix, dtype)
    report = verify(converted("imagewam_flux2"), folder)
    assert report.passed
    assert "infer.safetensors: infer0.action" in names_of(report)


STATE = "infer0.proprio"


def acting_alone(folder):
    """A copy of the recording of one decision."""
    folder = copy_of("imagewam_flux2", folder / "copy", without=("model.pt", "model.safetensors"))
    for path in folder.glob("*.safetensors"):
        if path.name != "infer.safetensors":
            path.unlink()
    (folder / "grad_norms.json").unlink()
    edit(
        folder / "infer.safetensors",
        lambda t: {name: x for name, x in t.items() if name.startswith("infer0.")},
    )
    return folder


def as_recorded(path, suffix, dtype):
    """The same tensors in a file of another kind, numbers in another dtype."""
    tensors = {
        n: x.astype(dtype) if x.dtype == np.float32 else x for n, x in load_file(path).items()
    }
    path.unlink()
    if suffix == ".pt":
        torch = pytest.importorskip("torch")
        torch.save({n: torch.from_numpy(x) for n, x in tensors.items()}, path.with_suffix(suffix))
    else:
        save = np.savez if suffix == ".npz" else lambda path, **tensors: save_file(tensors, path)
        save(path.with_suffix(suffix), **tensors)


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        (
            STATE,
            lambda x: x[0, 0],
            r"has shape \[8\], expected \[batch, steps, dims\] or \[batch, dims",
        ),
        (STATE, lambda x: x[0], "has 4 samples, the text 1"),
        (STATE, lambda x: x[None], r"has shape \[1, 1, 4, 8\], expected"),
        ("infer0.text_attention_mask", lambda x: x[:, None], r"expected \[batch, tokens\]"),
        ("infer0.text_hidden_states", lambda x: x[0], r"expected \[batch, tokens, channels\]"),
        ("infer0.ref_img_ids", lambda x: x[0], r"expected \[batch, tokens, 4\]"),
    ],
)
def test_axes_that_a_recording_cannot_have(name, change, problem, tmp_path):
    folder = acting_alone(tmp_path)
    edit(folder / "infer.safetensors", lambda t: t | {name: change(t[name]).copy()})
    with pytest.raises(ConversionError, match=rf"infer\.safetensors: {name} .*{problem}"):
        verify(converted("imagewam_flux2"), folder)


def test_files_that_hold_no_recording(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(
        ConversionError, match=r"no recording in it .* files of \.safetensors, \.npz"
    ):
        verify(converted("imagewam_flux2"), tmp_path)
    np.savez(tmp_path / "io.npz", a=np.array(["text"]))
    with pytest.raises(ConversionError, match=r"io.npz: a is of <U4, expected numbers"):
        verify(converted("imagewam_flux2"), tmp_path)
    (tmp_path / "io.npz").write_bytes(b"x")
    with pytest.raises(ConversionError, match=r"io.npz: cannot be read"):
        verify(converted("imagewam_flux2"), tmp_path)
