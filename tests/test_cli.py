"""The command line: verbs, overrides, and one line for what a user got wrong."""

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagewam_jax import cli
from imagewam_jax.config.loading import PATHS, load_config
from imagewam_jax.data.index.dataset_index import open_index
from imagewam_jax.errors import ConfigError, DataError
from imagewam_jax.preprocess.statistics import write_statistics
from imagewam_jax.text.tables import open_text_table
from imagewam_jax.training.prepare import encode_text
from tests.training.tiny import INSTRUCTIONS, ROOT, copy_sample

QUICKSTART = str(ROOT / "configs" / "quickstart.py")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return copy_sample(tmp_path_factory.mktemp("rlds"))


VERBS = ["train", "evaluate", "data", "encode-text", "convert", "export", "verify", "record"]
VERBS += ["check"]
DATA_VERBS = ["index", "check", "describe", "list", "show", "stats", "import-lerobot"]


@pytest.mark.parametrize("verb", VERBS + [f"data {verb}" for verb in DATA_VERBS])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([*verb.split(), "--help"])
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


def test_the_home_folder(tmp_path, monkeypatch, capsys):
    """Shells leave ~ in `--to=~/x`; it stands for the home folder in every path."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copyfile(QUICKSTART, tmp_path / "quickstart.py")
    config = load_config("~/quickstart.py", ["--config.data.directory=~/sets"])
    assert config.data.directory == str(tmp_path / "sets")
    assert cli.main(["data", "check", "~/sets"]) == 1
    assert f"imagewam data: {tmp_path}/sets: " in capsys.readouterr().err
    assert cli.main(["export", "~/run", "--format=flux2", "--to=~/out"]) == 1
    assert f"imagewam export: {tmp_path}/run: no such directory" in capsys.readouterr().err
    assert cli.main(["export", "run", "--format=flux2", "--to=~nobody-here/out"]) == 1
    assert "imagewam export: ~nobody-here/out: Could not" in capsys.readouterr().err


def test_an_address_where_a_path_is_wanted(tmp_path, monkeypatch, capsys):
    """No folder `gs:` is made for it."""
    monkeypatch.chdir(tmp_path)
    for command in (
        ["evaluate", "--checkpoint=run", "--record=gs://bucket/rollouts"],
        ["export", "run", "--format=flux2", "--to=s3://bucket/weights.safetensors"],
        ["verify", "run", "gs://bucket/recordings"],
    ):
        assert cli.main(command) == 1
        error = capsys.readouterr().err
        told = rf"imagewam {command[0]}: (gs|s3)://bucket/\S+ is an address .*: copy it, or .*mount"
        assert re.match(told, error)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [".".join(names) for names in PATHS])
def test_addresses_in_a_config_stay_what_they_are(name):
    section, field = name.split(".")
    config = load_config(QUICKSTART, [f"--config.{name}=gs://bucket/x"])
    assert config[section][field] == "gs://bucket/x"


def test_what_is_known_of_no_storage(capsys):
    """The kind of an address is looked at before anything is asked of a storage."""
    for command in (
        ["train", f"--config={QUICKSTART}", "--workdir=http://bucket/run"],
        ["evaluate", "--checkpoint=az://bucket/run"],
        ["convert", "ftp://bucket/weights.safetensors", "--to=weights"],
    ):
        assert cli.main(command) == 1
        assert "an address of another kind than gs://, s3://, file://" in capsys.readouterr().err


def test_a_file_where_a_folder_should_be_and_the_other_way_round(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    file, folder = str(tmp_path / "file"), str(tmp_path)
    assert cli.main(["evaluate", "--checkpoint=run", f"--output={file}"]) == 1
    assert f"--output {file} is a file, expected a folder" in capsys.readouterr().err
    assert cli.main(["verify", "run", folder, f"--json={folder}"]) == 1
    assert f"--json {folder} is a folder, expected a file's name" in capsys.readouterr().err
    for path in (file, folder):
        with pytest.raises(DataError, match=f"{path}: is there already, and holds no statistics"):
            write_statistics(Path(path), {})
    assert (tmp_path / "file").read_text() == "x"


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


def test_index(dataset, tmp_path, capsys):
    """Beside the dataset, or elsewhere."""
    assert cli.main(["data", "index", str(dataset), f"--output={tmp_path / 'index'}"]) == 0
    out = capsys.readouterr().out
    assert "metaworld_faucet/train: 6 episodes, 380 steps" in out
    assert "metaworld_faucet/val: 2 episodes" in out
    assert (tmp_path / "index" / "meta.json").is_file()
    assert cli.main(["data", "index", str(dataset)]) == 0
    assert (dataset / "imagewam_index" / "meta.json").is_file()


def test_what_cannot_be_indexed(dataset, tmp_path, capsys):
    assert cli.main(["data", "index", str(tmp_path)]) == 1
    assert f"imagewam data: {tmp_path}: not a TFDS version folder" in capsys.readouterr().err
    assert cli.main(["data", "index", str(dataset), "--runner=Direct"]) == 1
    assert "unknown arguments: --runner=Direct" in capsys.readouterr().err
    assert cli.main(["data", "index", str(dataset), str(dataset), "--output=x"]) == 1
    assert "--output is the index of one DIR" in capsys.readouterr().err


def test_check(dataset, tmp_path, capsys):
    """The exit code says whether every byte is what it should be."""
    assert cli.main(["data", "check", str(dataset)]) == 0
    assert "8 episodes, 512 frames, 512 images\nnothing is bad" in capsys.readouterr().out
    damaged = Path(shutil.copytree(dataset, tmp_path / "1.0.0"))
    shard = sorted(damaged.glob("*tfrecord*"))[0]
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    assert cli.main(["data", "check", str(dataset), str(damaged)]) == 1
    out = capsys.readouterr().out
    assert "nothing is bad" in out and "something is bad" in out and shard.name in out


def test_list(capsys):
    assert cli.main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (faucet,) = (line for line in lines if line.startswith("metaworld_faucet "))
    assert "80" in faucet and "primary=image" in faucet
    assert sum("oxe_magic_soup_plus" in line for line in lines) == 27


def test_stats(dataset, tmp_path, capsys):
    official = tmp_path / "dataset_stats.json"
    config = [f"--config={QUICKSTART}", f"--config.data.directory={dataset}"]
    assert cli.main(["data", "stats", *config, f"--official={official}"]) == 0
    out = capsys.readouterr().out
    assert "metaworld_faucet: 6 episodes, 380 steps" in out
    steps = open_index(dataset).splits["train"].steps
    mean = steps["observation/state"][:].astype(np.float64).mean(0)
    (line,) = (x for x in out.split("state ")[1].splitlines() if x.startswith("gripper"))
    assert float(line.split()[3]) == pytest.approx(mean[3], rel=1e-4)
    found = json.loads(official.read_text())
    assert found["num_transition"] == 380
    assert len(found["action"]["default"]["stepwise_mean"]) == 16


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


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (KeyboardInterrupt(), 130, "imagewam data: ended by Ctrl-C"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            1,
            "imagewam data: [Errno 28] No space left on device: '/x/y'; free some space there",
        ),
    ],
)
def test_an_interrupt_and_a_full_disk_are_one_line(error, status, line, monkeypatch, capsys):
    def fail(*_):
        raise error

    monkeypatch.setattr(cli.data, "_list", fail)
    assert cli.main(["data", "list"]) == status
    assert capsys.readouterr().err == f"{line}\n"


def test_exit_codes_are_in_the_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "75 a training run was told to stop" in " ".join(capsys.readouterr().out.split())


def test_the_help_needs_no_jax():
    code = "import sys\nfrom imagewam_jax import cli\n"
    code += "try:\n    cli.main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
    code += "print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
