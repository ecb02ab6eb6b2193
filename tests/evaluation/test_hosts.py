"""Recorded episodes are evaluated alike by one device, a mesh, several hosts, and after kills."""

import json
import sys

import numpy as np
import pytest

from imagewam_jax.cli.devices import _MESH
from imagewam_jax.config.defaults import defaults
from tests.evaluation.untrained import shrink, untrained_run, write_public_set
from tests.hosts import run_together

DATASETS = ("robotwin", "metaworld_faucet")
KILLED = 137  # SIGKILL, as a shell reports it
# `imagewam`, which saves its sums after each batch, and kills itself when it is to predict the
# given number of times.
PROGRAM = """
import os, signal, sys
from imagewam_jax.cli import main
from imagewam_jax.evaluation import offline, snapshot

left = int(sys.argv.pop(1))
predict = offline.predict

def counted(*arguments):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(*arguments)

offline.predict = counted
snapshot.SAVE_EVERY_S, snapshot.WRITING_SHARE = 0.0, 1e9
sys.exit(main())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained policy of two sets of unlike sizes, with 12 and 14 samples held out."""
    folder = tmp_path_factory.mktemp("hosts")
    config = shrink(defaults(), factor=16)
    for name, count, lengths in zip(DATASETS, (3, 1), ((5, 8, 6), (5, 9, 7)), strict=True):
        write_public_set(folder / "sets" / name / "1.0.0", name, count * [(32, 32)], list(lengths))
    config.data.update(directory=str(folder / "sets"), dataset="", mixture="both")
    config.data.mixtures = {"both": [{"dataset": name, "weight": 1.0} for name in DATASETS]}
    config.data.update(train_split="train[:1]", eval_split="train[1:]", image_size=(32, 32))
    config.model.expert.action_dim = config.model.proprio_dim = 14
    config.model.horizon = 4
    return untrained_run(config, folder / "run")


def evaluated(run, output, *more: str, processes: int, devices: int, kill: int = 0) -> None:
    """Evaluates in batches of eight; each process kills itself when it is to predict for the
    `kill`th time."""
    arguments = ["evaluate", f"--checkpoint={run}", f"--output={output}"]
    arguments += ["--batch-size=8", "--samples=all", *more]
    program = [sys.executable, "-c", PROGRAM, str(kill)]
    code = KILLED if kill else 0
    lines = run_together(program, *arguments, processes=processes, devices=devices, code=code)
    assert sum("report: " in line for line in lines) == (0 if kill else 1)  # of the first alone


def results(output) -> dict:
    return json.loads((output / "evaluation.json").read_text())["offline"]


def check_alike(found, expected, where: str = "") -> None:
    """The same texts and whole numbers, and numbers that differ in their last bits alone."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            check_alike(found[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        for n, (one, other) in enumerate(zip(found, expected, strict=True)):
            check_alike(one, other, f"{where}[{n}]")
    elif isinstance(expected, float):
        np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg=where)
    else:
        assert found == expected, where


@pytest.fixture(scope="module")
def one_device(run, tmp_path_factory):
    output = tmp_path_factory.mktemp("one")
    evaluated(run, output, processes=1, devices=1)
    return output


@pytest.mark.slow(minutes=3)
def test_two_hosts_find_what_one_device_does(run, one_device, tmp_path):
    """Also after two kills, one of them in the second dataset, to the last bit."""
    mesh = ("--config.mesh.tensor=2", "--config.mesh.data=2", "--config.mesh.fsdp=-1")
    on_two = {"processes": 2, "devices": 4}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    evaluated(run, whole, *mesh, **on_two)
    expected = results(one_device)
    assert [found["samples"] for found in expected.values()] == [12, 14]
    check_alike(results(whole), expected)
    evaluated(run, killed, *mesh, **on_two, kill=2)
    assert not (killed / "evaluation.json").exists()
    evaluated(run, killed, *mesh, "--resume", **on_two, kill=3)
    assert list(results(killed)) == ["robotwin"]
    evaluated(run, killed, *mesh, "--resume", **on_two)
    assert results(killed) == results(whole)
    for name in DATASETS:
        found, wanted = (np.load(folder / "recorded" / f"{name}.npz") for folder in (killed, whole))
        assert set(found.files) == set(wanted.files)
        for array in wanted.files:
            np.testing.assert_array_equal(found[array], wanted[array])


@pytest.mark.slow
def test_one_device_is_killed_and_goes_on(run, one_device, tmp_path):
    """An evaluation that was killed and resumed has the numbers of one that was not."""
    evaluated(run, tmp_path, processes=1, devices=1, kill=2)
    one = results(one_device)
    evaluated(run, tmp_path, "--resume", processes=1, devices=1)
    assert results(tmp_path) == one


def test_the_fields_of_a_mesh_are_those_of_a_config():
    assert _MESH.keys() == set(defaults().mesh)
