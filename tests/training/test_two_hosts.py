"""Two processes that train together: told to stop, unable to read, and failing, one of them."""

import os
import signal
import sys
import time

import numpy as np
import pytest

from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
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
    environment = with_virtual_devices({**os.environ, **paths()}, 1)

    def begin(workdir, *faults, lines):
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


def test_one_is_told_to_stop_and_one_cannot_read(start, tmp_path):
    """All stop after the same step with exit code 75. The newest checkpoint, which one of them
    cannot read, is set aside by all, and the numbers are those of one process."""
    lines: list[str] = []
    with start(tmp_path / "one", "", lines=lines) as job:
        assert job.wait(timeout=300) == 0, "\n".join(lines)
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
    expected, found = losses(tmp_path / "one"), losses(two)
    assert list(found) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), rtol=1e-4)


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
