"""A run that is killed six times, at any moment, is number for number one that was not."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest

from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.training.preemption import EXIT_STATUS, Preempted
from tests.training.tiny import copy_sample, tiny_config

pytestmark = pytest.mark.whole
KILLS, STEPS, CHECKPOINT_EVERY = 6, 200, 10
# A server that has imported what training needs, so that each of the runs begins at once.
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["imagewam_jax.training.train", "tests.training.tiny"])


def run(dataset: str, workdir: str) -> None:
    from imagewam_jax.training.train import train

    config = tiny_config(dataset)
    config.train.update(steps=STEPS, checkpoint_every=CHECKPOINT_EVERY)
    try:
        train(config, workdir, resume=True)
    except Preempted:
        os._exit(EXIT_STATUS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return str(copy_sample(tmp_path_factory.mktemp("rlds")))


def start(dataset: str, workdir: Path):
    process = context.Process(target=run, args=(dataset, str(workdir)))
    process.start()
    return process


def finish(process) -> None:
    process.join(1800)
    assert process.exitcode == 0


def last_step(workdir: Path) -> int:
    """The last step among the rows that are there; the last row may be incomplete."""
    path = workdir / METRICS_FILE
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().split(b"\n")[:-1]
    steps = [json.loads(line)["step"] for line in lines if line.startswith(b"{")]
    return max(steps, default=0)


def rows_file(workdir: Path) -> int | None:
    """Which file it is that has the rows."""
    path = workdir / METRICS_FILE
    return path.stat().st_ino if path.exists() else None


def newest_checkpoint(workdir: Path) -> int:
    folder = workdir / "checkpoints"
    found = folder.iterdir() if folder.exists() else ()
    return max((int(path.name) for path in found if path.name.isdigit()), default=0)


def test_random_kills_lose_nothing(dataset, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(start(dataset, whole))
    chance = random.Random(0)
    for number in range(KILLS):
        told = chance.choice([signal.SIGKILL, signal.SIGTERM])
        before, begun = rows_file(killed), newest_checkpoint(killed)
        process = start(dataset, killed)
        if told == signal.SIGKILL and chance.random() < 0.3:  # while it starts
            time.sleep(chance.uniform(0, 2))
        else:
            wanted = begun + chance.randint(1, 30)
            deadline = time.monotonic() + 300
            # A run that resumes first writes anew the rows that stay; others are of the one before.
            while rows_file(killed) == before or last_step(killed) < wanted:
                assert process.is_alive() and time.monotonic() < deadline
                time.sleep(chance.uniform(0.001, 0.003))
        os.kill(process.pid, told)
        process.join(300)
        assert process.exitcode == (EXIT_STATUS if told == signal.SIGTERM else -signal.SIGKILL)
        reached, saved = last_step(killed), newest_checkpoint(killed)
        if told == signal.SIGTERM:
            assert saved == reached, number
        # Two may not have been complete: one is written while the next steps run.
        assert reached - 2 * CHECKPOINT_EVERY <= saved <= reached, number
    finish(start(dataset, killed))
    expected, found = losses(whole), losses(killed)
    assert [step for step, _ in found] == list(range(1, STEPS + 1))
    assert found == expected
    left = {path.name for path in (killed / "checkpoints").iterdir()}
    assert left == {str(STEPS - CHECKPOINT_EVERY), str(STEPS)}


def losses(workdir: Path) -> list[tuple[int, float]]:
    rows = read_metrics(workdir / METRICS_FILE)
    return [(row["step"], row["loss"]) for row in rows if row["kind"] == "train"]
