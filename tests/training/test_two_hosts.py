"""Two processes that train together: told to stop, unable to read, and failing, one of them."""

import os
import signal
import sys
import time
from types import MappingProxyType

import numpy as np
import pytest

from imagewam_jax.checkpoints.steps import is_step, step_folders
from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.storage.objects import as_path
from launch.local import PREEMPTED, LocalProcesses, free_port, with_virtual_devices
from tests.hosts import paths
from tests.training.tiny import copy_sample

pytestmark = pytest.mark.slow(minutes=2)
STEPS, EVERY = 60, 20
# `imagewam` with a fault: what `fault` says happens in this process.
PROGRAM = """
import sys
from imagewam_jax.cli import main
from imagewam_jax.errors import DataError
from imagewam_jax.checkpoints.store import Checkpoints
from imagewam_jax.errors import Unreadable
from imagewam_jax.training import train as loop

fault, step = sys.argv.pop(1).split(":")
read = Checkpoints.read

def cannot_read(self, number, abstract):
    if number == int(step):
        raise Unreadable("a disk of this host is broken")
    return read(self, number, abstract)

def cannot_open(config):
    raise DataError("no data on this host")

if fault == "read":
    Checkpoints.read = cannot_read
if fault == "data":
    loop.config_data = cannot_open
sys.exit(main())
"""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts `imagewam train` of the tiny config in processes with one fault each, "" for none."""
    folder = tmp_path_factory.mktemp("hosts")
    config = folder / "config.py"
    config.write_text(
        "from tests.training.tiny import tiny_config\n"
        "def get_config():\n"
        f"    config = tiny_config({str(copy_sample(folder))!r})\n"
        f"    config.train.update(steps={STEPS}, checkpoint_every={EVERY}, keep_checkpoints=9)\n"
        "    return config\n"
    )

    def begin(workdir, *faults, lines, environment=MappingProxyType({})):
        environment = with_virtual_devices({**os.environ, **paths(), **environment}, 1)
        train = ["train", f"--config={config}", f"--workdir={workdir}", "--resume"]
        hosts = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={len(faults)}"]
        commands = [
            [sys.executable, "-c", PROGRAM, fault or ":", *train]
            + ([*hosts, f"--process={number}"] if len(faults) > 1 else [])
            for number, fault in enumerate(faults)
        ]
        return LocalProcesses(commands, environment=environment, output=lines.append, grace=200)

    return begin


def losses(workdir):
    path = workdir / METRICS_FILE
    rows = read_metrics(path) if path.exists() else []
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


@pytest.fixture(scope="module")
def expected(start, tmp_path_factory):
    """The losses of one process."""
    workdir, lines = tmp_path_factory.mktemp("one"), []
    with start(workdir, "", lines=lines) as job:
        assert job.wait(timeout=300) == 0, "\n".join(lines)
    return losses(workdir)


def assert_near(found, expected):
    assert list(found) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)


def test_one_is_told_to_stop_and_one_cannot_read(start, expected, tmp_path):
    """All stop after the same step with exit code 75. The newest checkpoint, which one of them
    cannot read, is set aside by all, and the numbers are those of one process."""
    lines: list[str] = []
    two = tmp_path / "two"
    with start(two, "", "", lines=lines) as job:
        deadline = time.monotonic() + 300
        while max(losses(two), default=0) < EVERY + 3:
            assert time.monotonic() < deadline, "\n".join(lines)
            time.sleep(0.01)
        job.processes[1].send_signal(signal.SIGTERM)
        assert job.wait(timeout=300) == PREEMPTED, "\n".join(lines)
        assert [process.returncode for process in job.processes] == [PREEMPTED, PREEMPTED]
    stopped = max(losses(two))
    steps = {int(path.name) for path in (two / "checkpoints").iterdir()}
    assert EVERY + 3 <= stopped < STEPS and max(steps) == stopped
    lines.clear()
    with start(two, "", f"read:{stopped}", lines=lines) as job:
        assert job.wait(timeout=300) == 0, "\n".join(lines)
    said = "\n".join(lines)
    assert f"[0] the checkpoint of step {stopped} is not used and was moved to" in said
    assert "another host cannot read it" in said
    assert (two / "checkpoints" / f"{stopped}.unreadable").is_dir()
    assert_near(losses(two), expected)


def test_both_write_to_a_bucket_and_one_goes_on(start, expected, bucket):
    """Told to stop, they leave a checkpoint that both have written to; it is whole."""
    bucket.behave()
    workdir, lines = as_path(bucket.address("runs/two_hosts")), []
    with start(workdir, "", "", lines=lines, environment=bucket.environment) as job:
        deadline = time.monotonic() + 600
        while not is_step(workdir / "checkpoints" / str(EVERY)):
            assert job.processes[0].poll() is None and time.monotonic() < deadline, lines
            time.sleep(0.1)
        job.processes[1].send_signal(signal.SIGTERM)
        assert job.wait(timeout=300) == PREEMPTED, "\n".join(lines)
    stopped = step_folders(workdir / "checkpoints")[-1]
    params = (workdir / "checkpoints" / str(stopped) / "params").objects()
    assert {name.partition("/")[0] for name in params} > {"ocdbt.process_0", "ocdbt.process_1"}
    with start(workdir, "", lines=lines, environment=bucket.environment) as job:
        assert job.wait(timeout=600) == 0, "\n".join(lines)
    assert_near(losses(workdir), expected)


def test_one_fails(start, tmp_path):
    """It says why and ends at once; the other ends soon, without it."""
    lines: list[str] = []
    with start(tmp_path / "run", "data:", "", lines=lines) as job:
        failed = job.processes[0]
        assert failed.wait(timeout=300) == 1
        began = time.monotonic()
        assert job.processes[1].wait(timeout=200) not in (0, PREEMPTED)
    print(f"the other ended after {time.monotonic() - began:.0f} s")
    assert any("imagewam train: no data on this host" in line for line in lines)
