"""The command line: verbs, overrides, and one line for what a user got wrong."""

import numpy as np
import pytest

from imagewam_jax import cli
from imagewam_jax.data.text import open_text_table
from imagewam_jax.policies.config_file import load_config
from imagewam_jax.policies.errors import ConfigError
from imagewam_jax.training.prepare import encode_text
from tests.training.tiny import INSTRUCTIONS, ROOT, copy_sample

QUICKSTART = str(ROOT / "configs" / "quickstart.py")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return copy_sample(tmp_path_factory.mktemp("rlds"))


VERBS = ["train", "evaluate", "index", "encode-text", "convert", "export", "verify", "record"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([verb, "--help"])
    assert end.value.code == 0
    assert f"imagewam {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: verb"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", f"--config={QUICKSTART}"], "required: --workdir"),
        (["evaluate"], "required: --checkpoint"),
        (["evaluate", "--checkpoint=x", "--fast"], "unknown arguments: --fast"),
    ],
)
def test_a_command_that_is_not_one(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_overrides_change_fields_and_keep_their_types():
    config = load_config(
        QUICKSTART,
        [
            "--config.train.steps=7",
            "--config.data.cameras=('a', 'b')",
            "--config.model.backbone.dim=64",
            "--config.optimizer.learning_rate=1",
        ],
    )
    assert (config.train.steps, config.data.cameras) == (7, ("a", "b"))
    assert config.model.backbone.dim == 64 and config.optimizer.learning_rate == 1.0
    unchanged = load_config(QUICKSTART, [])
    assert unchanged.train.batch_size == config.train.batch_size
    assert unchanged.model.backbone.heads == config.model.backbone.heads


def test_arguments_of_config_files():
    libero = str(ROOT / "configs" / "libero.py")
    widths = [load_config(path, []).model.backbone.dim for path in (libero, f"{libero}:9b")]
    assert widths == [3072, 4096]


def test_an_error_inside_a_config_file_keeps_its_traceback(tmp_path):
    """It is a mistake in a program, not in a command."""
    path = tmp_path / "broken.py"
    path.write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises((ZeroDivisionError, ConfigError), match="division by zero"):
        load_config(str(path), [])


def test_index(dataset, capsys):
    assert cli.main(["index", str(dataset), "--dataset=metaworld_faucet"]) == 0
    out = capsys.readouterr().out
    assert "metaworld_faucet/train: 6 episodes, 380 steps" in out
    assert "metaworld_faucet/val: 2 episodes" in out
    assert (dataset / "imagewam_index" / "metaworld_faucet" / "meta.json").is_file()


def test_index_of_what_is_no_dataset(tmp_path, capsys):
    assert cli.main(["index", str(tmp_path), "--dataset=metaworld_faucet"]) == 1
    assert f"imagewam index: {tmp_path}: not a TFDS version folder" in capsys.readouterr().err


def test_encoded_text_is_what_training_would_encode(dataset, tmp_path, capsys):
    """Rounded to bfloat16."""
    table = tmp_path / "text.safetensors"
    arguments = ["--config.data.directory=" + str(dataset), f"--output={table}"]
    assert cli.main(["encode-text", f"--config={QUICKSTART}", *arguments]) == 0
    out = capsys.readouterr().out
    assert "2 prompts, 0 of them encoded before" in out
    assert f"{table}: 2 prompts, 35 tokens of 192 channels" in out
    assert set(open_text_table(table).prompts) == set(INSTRUCTIONS)
    section = load_config(QUICKSTART, []).to_dict()["text"]
    encoded = encode_text(section, INSTRUCTIONS)
    from_table = encode_text(section | {"table": str(table)}, INSTRUCTIONS)
    rounded = encoded.features.astype(from_table.features.dtype)
    np.testing.assert_array_equal(from_table.features, rounded)
    np.testing.assert_array_equal(from_table.lengths, encoded.lengths)
    assert from_table.features.dtype == "bfloat16" and from_table.encoder == encoded.encoder


def test_encoding_the_lines_of_a_file_needs_no_dataset(tmp_path, capsys):
    table, prompts = tmp_path / "text.safetensors", tmp_path / "prompts.txt"
    arguments = ["--config.data.directory=/no/set", f"--output={table}", f"--prompts={prompts}"]
    assert cli.main(["encode-text", f"--config={QUICKSTART}", *arguments]) == 1
    assert f"imagewam encode-text: {prompts}: no file of instructions" in capsys.readouterr().err
    prompts.write_text("open it\n\nfold it\n")
    assert cli.main(["encode-text", f"--config={QUICKSTART}", *arguments]) == 0
    prompts.write_text("fold it\nlift it\n")
    assert cli.main(["encode-text", f"--config={QUICKSTART}", *arguments]) == 0
    assert "2 prompts, 1 of them encoded before" in capsys.readouterr().out
    assert open_text_table(table).prompts == ("fold it", "open it", "lift it")


def test_encoding_without_the_weights_of_qwen3(tmp_path, capsys):
    """A recipe as it is: the one line says what to obtain."""
    arguments = [f"--output={tmp_path / 'table'}", f"--prompts={tmp_path / 'prompts'}"]
    (tmp_path / "prompts").write_text("open it")
    libero = str(ROOT / "configs" / "libero.py")
    assert cli.main(["encode-text", f"--config={libero}:9b", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("imagewam encode-text: the text encoder qwen3 needs weights")
    assert "Qwen/Qwen3-8B for klein 9B" in line and "imagewam convert" in line
