"""Two processes of four devices each compute what one process with one device does."""

import sys

import numpy as np
import pytest

from imagewam_jax.checkpoints.store import METRICS_FILE, open_checkpoint, read_metrics
from imagewam_jax.models.parameters import flatten
from tests.hosts import run_together
from tests.training.mesh_runs import HALF, START, STEPS
from tests.training.tiny import copy_sample

pytestmark = pytest.mark.slow(minutes=5)
TOLERANCE = 1e-5  # of losses, relative
MESHES = ["context", "data_fsdp_tensor", "fsdp", "slices"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folders of all runs, some begun on one number of devices and ended on another."""
    folder = tmp_path_factory.mktemp("meshes")
    dataset = str(copy_sample(folder))
    run(folder, dataset, "one", processes=1, devices=1)
    run(folder, dataset, *MESHES, processes=2, devices=4)
    start = "--start-from=one"
    run(folder, dataset, "fsdp_tensor", "--resume-from=one", start, processes=2, devices=2)
    run(folder, dataset, "one", "--resume-from=fsdp", start, processes=1, devices=1)
    return folder


def run(folder, *arguments: str, processes: int, devices: int) -> None:
    program = [sys.executable, "-m", "tests.training.mesh_runs", str(folder)]
    run_together(program, *arguments, processes=processes, devices=devices, timeout=2400)


def losses(workdir, key="loss"):
    rows = [row for row in read_metrics(workdir / METRICS_FILE) if row["kind"] == "train"]
    return {row["step"]: row[key] for row in rows}


@pytest.mark.parametrize("name", MESHES)
def test_losses_are_those_of_one_device(folder, name):
    for key in ("loss", "target_loss", "action_loss", "grad_norm"):
        expected, found = losses(folder / "one", key), losses(folder / name, key)
        assert list(found) == list(range(1, STEPS + 1))
        np.testing.assert_allclose(
            list(found.values()), list(expected.values()), rtol=TOLERANCE, err_msg=key
        )


def saved(workdir, step, tree):
    """A tree of a checkpoint, on the first device, whatever it was saved from."""
    checkpoints, step = open_checkpoint(workdir / "checkpoints" / str(step))
    found = checkpoints.restore(step, {tree: checkpoints.abstract(step, tree)})[tree]
    checkpoints.close()
    return found


@pytest.mark.parametrize("name", MESHES)
def test_gradients_and_parameters_are_the_same_leaf_by_leaf(folder, name):
    for step in (HALF, STEPS):
        expected = gradients(folder / "one", step)
        found = gradients(folder / name, step)
        assert expected.keys() == found.keys() and len(expected) > 60
        for path, gradient in expected.items():
            error = np.linalg.norm(found[path] - gradient) / np.linalg.norm(gradient)
            assert error < 1e-4, (step, path, error)


def gradients(workdir, step):
    """Gradients of the last step: the first moments of an optimizer that forgets all others."""
    moments = saved(workdir, step, "optimizer")[1][0]["mu"]
    return {path: np.asarray(leaf) for path, leaf in flatten(moments).items()}


@pytest.mark.parametrize("name", ["one_then_fsdp_tensor", "fsdp_then_one"])
def test_a_run_goes_on_with_other_devices(folder, name):
    expected, found = losses(folder / "one"), losses(folder / name)
    assert list(found) == list(range(HALF + 1, STEPS + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values())[HALF:], rtol=TOLERANCE)


def test_a_run_starts_from_the_weights_of_another(folder):
    """They are read by two processes, each what its devices hold, or by one."""
    for key in ("loss", "grad_norm"):
        expected = losses(folder / "one_starts_one", key)
        found = losses(folder / "one_starts_fsdp_tensor", key)
        assert list(found) == list(range(1, START + 1)) == list(expected)
        np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=TOLERANCE)
    # Not those that it would have begun with by itself.
    assert abs(losses(folder / "one_starts_one")[1] / losses(folder / "one")[1] - 1) > 0.01


def test_only_the_first_process_writes(folder):
    """Rows of both would be there twice."""
    rows = read_metrics(folder / "fsdp" / METRICS_FILE)
    assert [row["step"] for row in rows if row["kind"] == "train"] == list(range(1, STEPS + 1))
    assert len(list((folder / "fsdp" / "tensorboard").iterdir())) == 1
