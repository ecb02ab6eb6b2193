"""Weights, tables and evaluations at gs:// addresses are those of files."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagewam_jax import cli
from imagewam_jax.errors import ConfigError
from imagewam_jax.policy.policy import Observations, load_policy
from imagewam_jax.storage.objects import as_path
from imagewam_jax.storage.orbax_paths import orbax_path
from imagewam_jax.text.tables import open_text_table
from tests.goldens import golden
from tests.training.tiny import INSTRUCTIONS, SAMPLE, copy_sample, trained_run
from tests.weights.foreign import converted, copy_case

CONFIG = f"""
from tests.training.tiny import tiny_config

def get_config():
    return tiny_config({str(SAMPLE)!r})
"""


@pytest.fixture
def address(bucket, request):
    """The address of the test's own folder of the bucket."""
    bucket.behave()
    yield bucket.address(f"weights/{request.node.name}")
    bucket.behave()


def run(*arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0


@pytest.mark.slow(minutes=1)
def test_foreign_weights_and_back(address, bucket, tmp_path):
    """Fetched from there, converted to there, and exported from there, where requests fail."""
    source = copy_case(golden("imagewam_flux2"), tmp_path / "source", "model.safetensors").parent
    shutil.copyfile(golden("normalization") / "stats_single.json", source / "dataset_stats.json")
    bucket.put_folder(source, address.removeprefix("gs://imagewam-tests/") + "/source")
    given = ["--set", "normalization=min/max"]
    run("convert", source, "--to", tmp_path / "policy", *given)
    bucket.behave(every=20, answers=[503])
    run("convert", f"{address}/source", "--to", f"{address}/policy", *given)
    (metadata, tree), (expected, like) = (
        converted(f"{address}/policy"),
        converted(tmp_path / "policy"),
    )
    assert metadata == expected
    jax.tree.map(np.testing.assert_array_equal, tree, like)
    for place, to in ((f"{address}/policy", "there"), (tmp_path / "policy", "here")):
        run("export", place, "--format=flux2", "--to", tmp_path / f"{to}.safetensors")
    found, wanted = (
        load_file(tmp_path / "there.safetensors"),
        load_file(tmp_path / "here.safetensors"),
    )
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_no_second_checkpoint_in_a_folder(address, capsys):
    autoencoder = golden("flux2_autoencoder") / "weights.safetensors"
    run("convert", autoencoder, "--to", address)
    assert cli.main(["convert", str(autoencoder), "--to", address]) == 1
    assert f"{address} has a checkpoint of step 0 already" in capsys.readouterr().err


@pytest.mark.slow(minutes=1)
def test_a_policy_acts_and_is_evaluated(address, bucket, tmp_path):
    here = tmp_path / "run"
    shutil.copytree(trained_run(), here)
    there = bucket.put_folder(here, address.removeprefix("gs://imagewam-tests/"))
    observations = Observations(
        images=np.full((1, 1, 64, 64, 3), 99, np.uint8),
        state=np.zeros((1, 4), np.float32),
        text_id=np.zeros(1, np.int32),
    )
    noise = np.ones((1, 4, 4), np.float32)
    actions = [load_policy(place).act(observations, noise) for place in (str(here), there)]
    np.testing.assert_array_equal(*actions)
    data = copy_sample(tmp_path)
    for place in (here, there):
        run("evaluate", f"--checkpoint={place}", f"--data={data}", "--no-simulator", "--samples=8")
    results = as_path(there) / "evaluation" / "evaluation.json"
    expected = json.loads((here / "evaluation" / "evaluation.json").read_text())
    assert json.loads(results.read_text()) == expected
    assert (as_path(there) / "evaluation" / "report.html").is_file()


def test_a_table_of_text(address, tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG)
    for number, prompts in enumerate((INSTRUCTIONS[:1], INSTRUCTIONS)):
        (tmp_path / "prompts").write_text("\n".join(prompts))
        for place in (tmp_path / "text.safetensors", f"{address}/text.safetensors"):
            run(
                "encode-text",
                f"--config={tmp_path / 'config.py'}",
                f"--prompts={tmp_path / 'prompts'}",
                f"--output={place}",
            )
            assert (
                f"{number + 1} prompts, {number} of them encoded before" in capsys.readouterr().out
            )
    there, here = map(
        open_text_table, (f"{address}/text.safetensors", tmp_path / "text.safetensors")
    )
    assert there.prompts == here.prompts and there.encoder == here.encoder
    for found, expected in zip(there.rows(there.prompts), here.rows(here.prompts), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_what_checkpoints_cannot_lie_at():
    with pytest.raises(ConfigError, match="gs:// addresses and in folders, not at s3://"):
        orbax_path(as_path("s3://bucket/run"))
