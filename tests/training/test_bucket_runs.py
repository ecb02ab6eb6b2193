"""Runs whose folder is an address: they go on after a kill, a damaged checkpoint and a storage that
refuses to be written to, with the numbers of a run on disk."""

import re
import signal
import time

import pytest

from imagewam_jax.checkpoints.steps import is_step, step_folders
from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.errors import DataError, StorageError
from imagewam_jax.storage.objects import as_path
from tests.shared_folder import shared
from tests.training.commands import finish, start
from tests.training.test_resume import numbers
from tests.training.tiny import SAMPLE

CONFIG = f"""
from tests.training.tiny import tiny_config

def get_config():
    return tiny_config({str(SAMPLE)!r})
"""
pytestmark = pytest.mark.slow(minutes=3)


def _nothing(folder):
    pass


@pytest.fixture
def command(tmp_path):
    """Starts a run in a folder, or goes on with one."""
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    data = f"--config.data.index_directory={tmp_path / 'index'}"

    def begin(workdir):
        arguments = [f"--config={config}", data, f"--workdir={workdir}", "--resume"]
        return start("train", *arguments, cache=shared("bucket_runs_compiled", _nothing))

    return begin


@pytest.fixture
def expected(command):
    """The numbers of a run on disk."""
    return rows(shared("bucket_runs_on_disk", lambda folder: finish(command(folder))))


def rows(workdir):
    """The numbers of a run; how many requests failed is none of them."""
    return [{**row, "read_retries": 0} for row in numbers(workdir)]


@pytest.fixture
def workdir(bucket, request):
    bucket.behave()
    yield as_path(bucket.address(f"runs/{request.node.name}"))
    bucket.behave()


def wait_for(checkpoint, process):
    """Until a checkpoint is complete."""
    while not is_step(checkpoint):
        assert process.poll() is None, process.communicate()[1][-4000:]
        time.sleep(0.05)


def test_a_killed_run_goes_on(command, expected, workdir):
    checkpoints = workdir / "checkpoints"
    process = command(workdir)
    wait_for(checkpoints / "4", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert step_folders(checkpoints) == [4]
    out = finish(command(workdir))
    assert "tensorflow" not in out.rpartition("imported:")[2]
    assert step_folders(checkpoints) == [4, 8] and rows(workdir) == expected
    assert [path.name for path in (workdir / "tensorboard").iterdir()]


def test_a_damaged_checkpoint_is_set_aside(command, expected, workdir):
    finish(command(workdir))
    newest = workdir / "checkpoints" / "8"
    params = [name for name in newest.objects() if name.startswith("params/")]
    for name in params:
        if "/d/" in name:
            (newest / name).write_bytes((newest / name).read_bytes()[:-100])
    out = finish(command(workdir))
    aside = workdir / "checkpoints" / "8.unreadable"
    assert f"the checkpoint of step 8 is not used and was moved to {aside}: " in out
    assert len([n for n in aside.objects() if n.startswith("params/")]) == len(params)
    assert step_folders(workdir / "checkpoints") == [4, 8] and rows(workdir) == expected


def test_a_storage_that_does_not_answer_sets_nothing_aside(bucket, command, expected, workdir):
    """What it does not give is not damaged."""
    finish(command(workdir))
    checkpoints, step = open_checkpoint(workdir)
    bucket.behave(answers=[403])
    with pytest.raises(StorageError, match=r"checkpoints/8: data cannot be read: "):
        checkpoints.restore_json(step, "data")
    with pytest.raises(DataError, match=r"checkpoints/8: cannot be listed: PERMISSION_DENIED"):
        checkpoints.abstract(step, "params")
    process = command(workdir)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1 and "Traceback" not in errors
    bucket.behave()
    assert step_folders(workdir / "checkpoints") == [4, 8] and rows(workdir) == expected


def test_a_storage_that_cannot_be_written_to(bucket, command, expected, workdir):
    """It ends the run at the next checkpoint, in a line, and costs no more than the steps since."""
    process = command(workdir)
    wait_for(workdir / "checkpoints" / "4", process)
    bucket.behave(every=1, answers=[403])
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    line = errors.strip().split("\n")[-1]
    assert line.startswith("imagewam train: ") and "runs/test_a_storage" in line
    assert "Traceback" not in errors
    refused = command(workdir)
    _, errors = refused.communicate(timeout=300)
    assert refused.returncode == 1 and "Traceback" not in errors
    assert re.search(r"imagewam train: gs://.*403", errors)
    bucket.behave()
    assert step_folders(workdir / "checkpoints") == [4]
    finish(command(workdir))
    assert rows(workdir) == expected
