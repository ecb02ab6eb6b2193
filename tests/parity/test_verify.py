"""`imagewam verify` on every recorded case that applies, and on ones in which numbers are off.

Recordings that it refuses are in `test_verify_refused`."""

import json
import re

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from imagewam_jax import cli
from imagewam_jax.checkpoints.store import Checkpoints, open_checkpoint
from imagewam_jax.errors import CheckpointError
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.verify import verify
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.io.files import open_weights
from tests.goldens import golden
from tests.parity.recordings import (
    converted,
    copy_of,
    edit,
    names_of,
    reasons,
    without,
)
from tests.parity.recordings import recorded_names as recorded
from tests.weights.foreign import copy_case


@pytest.mark.parametrize("case", ["imagewam_flux2", "imagewam_flux2_noproprio"])
def test_a_whole_policy(case):
    """Every recorded tensor is an input, is compared, or is listed with the reason why not."""
    report = verify(converted(case), golden(case))
    assert report.passed and not names_of(report, passed=False)
    found, why_not = names_of(report), reasons(report)

    norms = json.loads((golden(case) / "grad_norms.json").read_text())
    assert found >= recorded(case, "trace.safetensors") | recorded(case, "grads.safetensors")
    assert found >= {f"grad_norms.json: {name}" for name in norms}
    train, infer = recorded(case, "train.safetensors"), recorded(case, "infer.safetensors")
    inputs = ["video", "action", "noise_.*", "u_.*", "proprio", "text_.*", "action_.*_pad"]
    masks = {f"train.safetensors: attention_mask_{kind}" for kind in ("double_joint", "single")}
    assert without(train - found, *inputs) == masks
    assert {f"train.safetensors: {name}" for name in ("pred_video", "loss_total")} < found
    assert "train.safetensors: attention_mask_double_joint, attention_mask_single" in why_not
    inputs = [r"infer\d\.(noise|image|proprio|text_.*)", r"infer_video\.noise"]
    assert without(infer - found, *inputs) == set()
    if case == "imagewam_flux2":
        packing = recorded(case, "proprio_pack.safetensors")
        assert len(packing & found) == 3 * 4  # three masks, with and without packing
        assert {"holes.pack_*", "left_padded.pack_*"} < why_not.keys()


def test_a_whole_policy_on_omnigen2():
    """As of FLUX.2; its recordings hold latents, and the noise that they were sampled with."""
    case = "imagewam_omnigen2"
    report = verify(converted(case), golden(case))
    assert report.passed and not names_of(report, passed=False)
    found, why_not = names_of(report), reasons(report)
    norms = json.loads((golden(case) / "grad_norms.json").read_text())
    assert found >= {f"grad_norms.json: {name}" for name in norms}
    for file in ("trace", "grads", "vae"):
        assert found >= recorded(case, f"{file}.safetensors")
    inputs = [
        "video",
        "action",
        "noise_.*",
        "eps_.*",
        "u_.*",
        "proprio",
        "text_.*",
        "action_.*_pad",
    ]
    left = without(recorded(case, "train.safetensors") - found, *inputs)
    native = ("native_forward_two_refs_pred", "native_second_ref_of_sample0")
    assert left == {f"train.safetensors: {name}" for name in (*native, "attention_mask")}
    assert "of two sizes" in why_not["native_forward_two_refs_pred"]
    inputs = [r"infer\d\.(noise|image|eps_vae|proprio|text_.*)", r"infer_video\.(noise|eps_vae)"]
    assert without(recorded(case, "infer.safetensors") - found, *inputs) == set()
    (unpacked,) = (why for what, why in why_not.items() if what.startswith("train_nopack"))
    assert "padded text" in unpacked


def test_a_policy_without_the_autoencoder_of_its_recording():
    """What was imagined started from an image that only the autoencoder can encode again."""
    report = verify(converted("omnigen2_alone"), golden("imagewam_omnigen2"))
    assert report.passed
    assert "autoencoder" in reasons(report)["infer_video.latents_per_step"]


@pytest.mark.parametrize("width", [16, 32])
def test_first_weights_of_an_expert_for_omnigen2(width, tmp_path):
    case = golden("action_init_omnigen2")
    source = copy_case(case, tmp_path / "source", "transformer_weights.safetensors")
    convert([source], tmp_path / "made", expert="official", overrides={"expert_dim": width})
    report = verify(tmp_path / "made", case)
    name = {16: "narrow", 32: "wide"}[width]
    assert report.passed
    assert recorded("action_init_omnigen2", f"action_init_{name}.safetensors") < names_of(report)


def test_a_transformer():
    report = verify(converted("flux2_transformer"), golden("flux2_transformer"))
    assert report.passed
    io = recorded("flux2_transformer", "io.safetensors") - names_of(report)
    assert without(io, "x|ref|ctx|.*_ids|timesteps|schedule|denoise_cfg.ctx_uncond") == without(
        io, "(?!kvref|pred_kv).*"
    )
    assert "pred_with_ref" in {check.name for check in report.checks}
    assert any("kvref.double.0.k" in what for what in reasons(report))
    tables = {check.name: check for check in report.checks if check.name.startswith("pe_")}
    assert len(tables) == 3 and tables["pe_bfloat16_ids"].equal


def test_an_autoencoder():
    report = verify(converted("flux2_autoencoder"), golden("flux2_autoencoder"))
    assert report.passed
    outputs = recorded("flux2_autoencoder", "io.safetensors") - names_of(report)
    assert outputs == {"io.safetensors: image", "io.safetensors: decode_in"}


def test_a_text_encoder():
    report = verify(converted("text_qwen3"), golden("text_qwen3"))
    assert report.passed
    layers = {f"io.safetensors: hidden_states.{n}" for n in (0, 1, 2, 9, 18, 27)}
    assert layers | {"io.safetensors: text_hidden_states"} < names_of(report)
    assert "ends with layer 27" in reasons(report)["hidden_states.28"]


@pytest.mark.parametrize("case", ["lora", "lora_alpha"])
def test_merged_adapters(case):
    report = verify(converted(case), golden(case))
    assert report.passed
    found, merged = names_of(report), recorded(case, "lora_merged.safetensors")
    assert {"io.safetensors: pred_lora", "io.safetensors: pred_merged"} | merged < found
    assert "io.safetensors: pred_base, pred_legacy_merge" in reasons(report)


KINDS = ("checkpoint_unmerged", "checkpoint_merged", "checkpoint_trainable_only")


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints_with_adapters(kind, tmp_path):
    pytest.importorskip("torch")
    folder = golden("lora_checkpoints")
    sources = [folder / f"{kind}.pt"]
    if kind == "checkpoint_trainable_only":
        whole, prefix = open_weights(folder / "checkpoint_unmerged.pt"), BACKBONE
        base = {
            name.removeprefix(prefix).replace(".base.weight", ".weight"): whole.read(name)
            for name in whole.specs
            if name.startswith(prefix) and "lora_" not in name
        }
        save_file(base, tmp_path / "base.safetensors")
        sources.append(tmp_path / "base.safetensors")
    convert(sources, tmp_path / "out", overrides={} if len(sources) == 1 else ROPE)
    report = verify(tmp_path / "out", folder)
    assert report.passed
    assert names_of(report) == recorded("lora_checkpoints", "expected_merged.safetensors")


BACKBONE = "mot.mixtures.video.transformer."
ROPE = {"rope_axes": [2, 2, 2, 2], "rope_theta": 2000}


@pytest.mark.parametrize("target", ["narrow", "narrow_noalpha", "same_width_mlp4"])
def test_first_weights_of_an_expert(target, tmp_path):
    """Only weights that were made with the same settings are compared."""
    case = golden("action_init")
    settings = json.loads((case / "config.json").read_text())["targets"][target]
    given = {"expert_dim": settings["action_dit_config"]["hidden_dim"]}
    if not settings["apply_alpha_scaling"]:
        given["expert_scale"] = False
    convert([case / "flux2_weights.safetensors"], tmp_path, overrides=given, expert="official")
    report = verify(tmp_path, case)
    assert report.passed
    files = {check.file for check in report.checks}
    assert files == {f"action_init_{target}.safetensors", "flux2_weights.safetensors"}
    assert len([what for what in reasons(report) if what.startswith("action_init_")]) == 2


def test_the_aligned_first_weights_are_not_those_recorded(tmp_path):
    case = golden("action_init")
    given = {"expert_dim": 32}
    convert([case / "flux2_weights.safetensors"], tmp_path, overrides=given, expert="aligned")
    report = verify(tmp_path, case)
    assert {check.file for check in report.checks} == {"flux2_weights.safetensors"}
    assert "aligned first weights" in reasons(report)["action_init_narrow.safetensors"]


def test_each_tensor_that_is_off_fails_alone(tmp_path):
    """A recording in which one number of many tensors is three limits away."""
    off = {
        "train.safetensors": {"pred_video": 1.5e-4, "loss_total": 2e-4, "weight_action": 1e-5},
        "trace.safetensors": {"double.1.txt": 1.5e-4, "single.2.stream": 1.5e-4},
        "grads.safetensors": {"mot.mixtures.action.head.linear.weight": 2e-3},
        "infer.safetensors": {
            "infer1.kv.single.0.v": 6e-5,
            "infer0.action": 6e-5,
            "infer0.velocity_per_step": 1.5e-4,
            "infer_video.image": 1.5e-4,
        },
        "proprio_pack.safetensors": {"right_padded.pack_false.context": 1e-5},
        "model.safetensors": {"proprio_encoder.weight": 1e-3},
    }
    folder = copy_of("imagewam_flux2", tmp_path / "case")
    for file, tensors in off.items():

        def change(arrays, tensors=tensors):
            for name, distance in tensors.items():
                arrays[name].reshape(-1)[0] += distance

        edit(folder / file, change)
    report = verify(converted("imagewam_flux2"), folder)
    assert not report.passed
    assert names_of(report, passed=False) == {
        f"{file}: {name}" for file, tensors in off.items() for name in tensors
    }


def test_one_wrong_weight_fails(tmp_path, capsys):
    """Through the command line: exit code 1 for a checkpoint whose weights differ in one number."""
    arguments = ["verify", str(converted("flux2_transformer"))]
    references = copy_of("flux2_transformer", tmp_path / "case")
    assert cli.main([*arguments, str(references)]) == 0
    assert "all pass" in capsys.readouterr().out

    source = copy_case(golden("flux2_transformer"), tmp_path / "source")

    def one_number(tensors):
        tensors["single_blocks.1.linear2.weight"][3, 100] += 0.1

    edit(source, one_number)
    convert([source], tmp_path / "wrong")
    capsys.readouterr()
    file = tmp_path / "result.json"
    arguments = ["verify", str(tmp_path / "wrong"), str(references), "--json", str(file)]
    assert cli.main(arguments) == 1
    out = capsys.readouterr().out
    assert re.search(r"pred_without_ref .* 5e-05 absolute +FAIL", out)
    assert re.search(r"single_blocks.1.linear2.weight .* FAIL", out)
    assert re.search(r"\d+ tensors compared with .*: 5 FAILED", out)
    result = json.loads(file.read_text())
    assert result["passed"] is False and result["saved_in"] == "float32"
    failed = [check for check in result["checks"] if not check["passed"]]
    assert len(failed) == 5 and failed[0]["limit"] == {"value": 5e-05, "kind": "absolute"}
    assert result["not_checked"][0]["why"]


def test_a_part_that_the_checkpoint_lacks():
    """A policy by itself: what needs the autoencoder is listed, the rest is compared."""
    report = verify(converted("policy_alone"), golden("imagewam_flux2_noproprio"))
    assert report.passed
    why = "needs the autoencoder of a checkpoint, this one has: policy"
    assert reasons(report)["frames of that step"] == why
    assert reasons(report)["images that it sees and imagines"] == why
    assert not {check.kind for check in report.checks} & reasons(report).keys()


def test_a_part_that_the_policy_was_recorded_with():
    """The autoencoder by itself, on the images of a policy's recording."""
    report = verify(converted("flux2_autoencoder"), golden("imagewam_flux2"))
    assert report.passed
    assert {check.name for check in report.checks} == {
        "ref_image_latents",
        "target_latent",
        "infer0.ref_tokens",
        "infer1.ref_tokens",
        "infer_video.image",
    }
    assert "needs the policy" in reasons(report)["training step of a policy"]


def test_weights_in_bfloat16():
    """The report says so: rounded weights are not those that the recording was made with."""
    report = verify(converted("bfloat16"), golden("flux2_transformer"))
    assert (report.saved_in, report.computed_in) == ("bfloat16", "float32")
    failed = names_of(report, passed=False)
    assert "io.safetensors: pred_with_ref" in failed
    assert "weights.safetensors: img_in.weight" in failed


def test_the_average_of_a_training_run(tmp_path):
    """Verification takes the average where there is one, as `imagewam export` does."""
    checkpoints, step = open_checkpoint(converted("flux2_transformer"))
    metadata = checkpoints.restore_json(step, "metadata")
    params = checkpoints.restore(step, {"params": checkpoints.abstract(step, "params")})["params"]
    checkpoints.close()
    run = Checkpoints(tmp_path / "run")
    run.save(0, {"params": jax.tree.map(lambda x: 1.5 * x, params), "ema": params}, metadata)
    run.wait()
    run.close()
    without = ("rope.safetensors", "weights.safetensors")
    references = copy_of("flux2_transformer", tmp_path / "case", without=without)
    assert verify(tmp_path / "run", references).passed
    assert not verify(tmp_path / "run", references, weights="params").passed
    with pytest.raises(CheckpointError, match="no 'ema' in it"):
        verify(converted("flux2_transformer"), references, weights="ema")


def test_limits():
    two, off = np.array([0.0, 2.0]), np.array([0.1, 2.0])
    assert limits.Limit(0.1, limits.ABSOLUTE).error(off, two) == pytest.approx(0.1)
    assert limits.Limit(0.1, limits.LARGEST).error(off, two) == pytest.approx(0.05)
    assert limits.Limit(0.1, limits.RELATIVE).error(off, two) == np.inf
    assert limits.Limit(0.1, limits.RELATIVE).error(two * 1.5, two) == pytest.approx(0.5)
    for kind in (limits.ABSOLUTE, limits.LARGEST, limits.RELATIVE):
        assert limits.Limit(0.1, kind).error(two, two) == 0
        assert limits.Limit(0.1, kind).error(0 * two, 0 * two) == 0
        assert np.isnan(limits.Limit(0.1, kind).error(np.array([np.nan, 2.0]), two))
