"""A run's folder has one writer, and Ctrl-C saves what it did."""

import os
import signal
import time
from pathlib import Path

import pytest

from imagewam_jax import cli
from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.errors import InUseError
from imagewam_jax.training.preemption import EXIT_STATUS
from imagewam_jax.training.train import train
from tests.training.commands import start
from tests.training.tiny import copy_sample, tiny_config

STEPS = 100_000


@pytest.mark.slow(minutes=1)
def test_a_second_run_is_refused_and_an_interrupt_saves(tmp_path, capsys):
    dataset, workdir = copy_sample(tmp_path), tmp_path / "run"
    config = tmp_path / "config.py"
    config.write_text(
        "from tests.training.tiny import tiny_config\n"
        "def get_config():\n"
        f"    config = tiny_config({str(dataset)!r})\n"
        f"    config.train.update(steps={STEPS}, checkpoint_every={STEPS})\n"
        "    return config\n"
    )
    command = ["train", f"--config={config}", f"--workdir={workdir}"]
    first = start(*command, cache=Path(os.environ["JAX_COMPILATION_CACHE_DIR"]))
    try:
        deadline = time.monotonic() + 600
        while last_step(workdir) < 3:
            assert first.poll() is None, first.communicate()[1][-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert cli.main([*command, "--resume"]) == 1
        said = capsys.readouterr().err
        assert f"imagewam train: {workdir} is in use by process {first.pid} on " in said
        with pytest.raises(InUseError, match=f"process {first.pid} on "):
            train(tiny_config(dataset), workdir)
        assert first.poll() is None
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=300)
    finally:
        first.kill()
    assert first.returncode == EXIT_STATUS
    last = last_step(workdir)
    lines = errors.splitlines()
    assert lines[-1] == (
        f"imagewam train: told to stop, saved after step {last} of {STEPS}; go on with --resume"
    )
    assert "Ctrl-C: the run saves and ends; a second one ends it without saving" in lines
    assert "Traceback" not in errors
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(last)]
    assert not list(workdir.glob(".lock"))


def last_step(workdir):
    rows = read_metrics(workdir / METRICS_FILE)
    return rows[-1]["step"] if rows else 0
