"""The commands on a dataset at a gs:// address: they print and train what they do on its files."""

import shutil

import pytest

from imagewam_jax import cli
from tests.training.commands import finish, start
from tests.training.test_resume import numbers
from tests.training.tiny import SAMPLE

CONFIG = """
from tests.training.tiny import tiny_config

def get_config():
    config = tiny_config({dataset!r})
    config.data.index_directory = {indexes!r}
    config.train.validate_every = 4
    config.train.validation_samples = 4
    return config
"""


@pytest.fixture
def address(bucket):
    bucket.behave()
    yield bucket.put_folder(SAMPLE, "rlds/metaworld_faucet/1.0.0")
    bucket.behave()


@pytest.fixture
def indexes(tmp_path):
    """The folder of indexes, one of which is of the files, so that none is written beside them."""
    made = tmp_path / "indexes" / "metaworld_faucet"
    assert cli.main(["data", "index", str(SAMPLE), f"--output={made}"]) == 0
    return made


def printed(capsys, *arguments):
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_data_commands(address, indexes, tmp_path, capsys):
    """Each prints of the objects what it prints of the files, but for the place."""
    both = {str(SAMPLE): indexes, address: tmp_path / "remote" / "metaworld_faucet"}
    found = []
    for place, index in both.items():
        config = tmp_path / f"{len(found)}.py"
        config.write_text(CONFIG.format(dataset=place, indexes=str(index.parent)))
        text = [
            printed(capsys, "data", "index", place, "--output", index),
            printed(capsys, "data", "check", place, "--index", index),
            printed(capsys, "data", "describe", place, "--index-directory", index.parent),
            printed(capsys, "data", "stats", "--config", config),
            printed(capsys, "data", "show", "--config", config, "--output", tmp_path / "page.html"),
        ]
        page = (tmp_path / "page.html").read_text()
        found.append([part.replace(place, "DIR") for part in (*text, page)])
        found[-1] = [part.replace(str(index.parent), "INDEXES") for part in found[-1]]
        found[-1] = [part.replace(config.name, "CONFIG") for part in found[-1]]
    assert found[0] == found[1]
    assert "nothing is bad" in found[0][1]


def test_a_run_goes_on_from_the_bucket(address, bucket, indexes, tmp_path):
    """It began on the files and lost what came after a checkpoint. The storage is slow, and some
    requests fail."""
    whole, moved = tmp_path / "whole", tmp_path / "moved"

    def run(place, workdir):
        config = tmp_path / "config.py"
        config.write_text(CONFIG.format(dataset=place, indexes=str(indexes.parent)))
        command = ["train", f"--config={config}", f"--workdir={workdir}", "--resume"]
        return finish(start(*command, cache=tmp_path / "compiled"))

    run(str(SAMPLE), whole)
    shutil.copytree(whole, moved)
    shutil.rmtree(moved / "checkpoints" / "8")
    bucket.behave(seconds=0.02, every=25, answers=[503])
    out = run(address, moved)
    requests, _ = bucket.counts()
    assert requests > 4 * 4 and "tensorflow" not in out.rpartition("imported:")[2]
    expected, found = numbers(whole), numbers(moved)
    retried = [row.pop("read_retries", 0) for row in found]
    assert retried[-2] > 0 and not any(row.pop("read_retries", 0) for row in expected)
    assert found == expected and found[-1]["step"] == 8
