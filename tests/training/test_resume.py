"""A run that is killed and resumed is, number for number, one that was not."""

import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from imagewam_jax.checkpoints.assets import asset_trees
from imagewam_jax.checkpoints.store import METRICS_FILE, open_checkpoint, read_metrics
from imagewam_jax.config.schema import policy_config
from imagewam_jax.training.resume import restore
from imagewam_jax.training.step import abstract_state, step_settings
from tests.training.commands import finish, start
from tests.training.tiny import copy_sample, one_device

STEPS, CHECKPOINT_EVERY = 120, 40
TRACED = 100  # and the steps behind it, by the run that goes on after the kill
# These say how fast a run was, not what it computed.
TIMES = {"seconds_per_step", "samples_per_second", "data_wait"}
CONFIG = """
from tests.training.tiny import tiny_config

def get_config():
    config = tiny_config({dataset!r})
    config.train.steps = {steps}
    config.train.checkpoint_every = {checkpoint_every}
    config.train.validate_every = 60
    config.train.validation_samples = 8
    return config
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of an uninterrupted run and of one that was killed and resumed, and what the
    first printed."""
    folder = tmp_path_factory.mktemp("resume")
    config = folder / "config.py"
    config.write_text(
        CONFIG.format(
            dataset=str(copy_sample(folder)), steps=STEPS, checkpoint_every=CHECKPOINT_EVERY
        )
    )

    def begin(workdir: Path, *more: str):
        arguments = "train", f"--config={config}", f"--workdir={workdir}", *more
        return start(*arguments, cache=folder / "compiled")

    whole, killed = folder / "whole", folder / "killed"
    printed = finish(begin(whole))
    kill_behind_a_checkpoint(begin(killed), killed)
    finish(begin(killed, "--resume", f"--config.watch.profile=({TRACED}, 3)"))
    return whole, killed, printed


def kill_behind_a_checkpoint(process, workdir: Path) -> None:
    """SIGKILL as soon as the run is a few steps behind a complete checkpoint."""
    try:
        deadline = time.monotonic() + 300
        while behind_checkpoint(workdir) < 3:
            assert process.poll() is None, process.communicate()[1][-4000:]
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    last = last_step(workdir)
    assert CHECKPOINT_EVERY < last < STEPS, f"killed at step {last}"


def behind_checkpoint(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    steps = [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
    return last_step(workdir) - max(steps) if steps else 0


def last_step(workdir: Path) -> int:
    rows = read_metrics(workdir / METRICS_FILE)
    return rows[-1]["step"] if rows else 0


def numbers(workdir: Path) -> list[dict]:
    rows = [r for r in read_metrics(workdir / METRICS_FILE) if r["kind"] != "goodput"]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def goodput(workdir: Path) -> dict:
    rows = read_metrics(workdir / METRICS_FILE)
    return next(row for row in reversed(rows) if row["kind"] == "goodput")


def test_every_row_of_numbers_is_the_same(runs):
    """Whatever was traced."""
    whole, killed, _ = runs
    expected, found = numbers(whole), numbers(killed)
    steps = [row["step"] for row in expected if row["kind"] == "train"]
    assert steps == list(range(1, STEPS + 1))
    assert [r["step"] for r in expected if r["kind"] == "validation"] == [60, 120]
    assert {"loss", "grad_norm", "grad_norm_backbone", "grad_norm_expert"} <= expected[0].keys()
    for a, b in zip(expected, found, strict=True):
        assert a == b
    assert [path.name for path in (killed / "profile").iterdir()] == [str(TRACED)]
    assert len(list(killed.rglob("profile/*/plugins/profile/*/*.xplane.pb"))) == 1


def test_what_the_kill_cost_is_accounted_for(runs):
    whole, killed, printed = runs
    assert f"goodput {goodput(whole)['goodput']:.1%} of" in printed
    assert goodput(whole)["lost_seconds"] == 0 < goodput(killed)["lost_seconds"]
    for workdir in (whole, killed):
        row = goodput(workdir)
        assert row["step"] == STEPS and 0 < row["goodput"] < 1
        parts = [v for k, v in row.items() if k.endswith("_seconds") and k != "wall_seconds"]
        assert sum(parts) == pytest.approx(row["wall_seconds"]) and min(parts) >= 0


def test_the_last_checkpoint_is_the_same_bit_for_bit(runs):
    whole, killed, _ = runs
    for a, b in zip(saved(whole), saved(killed), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def saved(workdir: Path) -> list[jax.Array]:
    """Every array of the last checkpoint: parameters, average, optimizer and assets."""
    checkpoints, step = open_checkpoint(workdir)
    assert step == STEPS
    metadata = checkpoints.restore_json(step, "metadata")
    config = metadata["config"]
    settings = step_settings(config, policy_config(config["model"]))
    restored = restore(checkpoints, step, abstract_state(settings, one_device()), config)
    checkpoints.close()
    return jax.tree.leaves((restored.state, asset_trees(restored.assets)))


def test_training_imports_neither_tensorflow_nor_torch(runs):
    assert "imported: ['jax']" in runs[2]
