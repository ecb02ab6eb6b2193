"""Every second of a run is accounted for once, over processes that were killed as well."""

import subprocess
import sys
import time

import pytest

from imagewam_jax.training.metrics.goodput import (
    WallTime,
    earlier_seconds,
    process_seconds,
    table,
)


class Clock:
    """A clock that tests move."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_each_second_belongs_to_one_phase(clock):
    wall = WallTime(before=2.0, clock=clock)
    clock.now += 3  # opening data
    with wall.phase("data_wait"):
        clock.now += 1  # before the first step, this too is start-up
    wall.step_done()
    for _ in range(4):
        with wall.phase("data_wait"):
            clock.now += 0.5
        clock.now += 5
        wall.step_done()
    with wall.phase("checkpoints"):
        clock.now += 7
        with wall.phase("validation"):
            clock.now += 1
        clock.now += 1
    row = wall.row()
    assert wall.steps == 4
    assert row["startup_seconds"] == 6 and row["steps_seconds"] == 20
    assert row["data_wait_seconds"] == 2 and row["checkpoints_seconds"] == 8
    assert row["validation_seconds"] == 1 and row["lost_seconds"] == 0
    assert row["wall_seconds"] == 37 and row["goodput"] == 20 / 37
    assert wall.row() == row  # looking at it does not change it


def test_an_error_ends_a_phase(clock):
    wall = WallTime(clock=clock)
    wall.step_done()
    with pytest.raises(OSError), wall.phase("checkpoints"):
        clock.now += 1
        raise OSError
    clock.now += 1
    seconds = wall.seconds()
    assert seconds["checkpoints"] == seconds["steps"] == 1


def test_the_table_adds_up(clock):
    wall = WallTime({"lost": 10.0}, clock=clock)
    clock.now += 20
    wall.step_done()
    clock.now += 70
    goodput, *lines = table(wall.row()).splitlines()
    assert goodput == "goodput 70.0% of 100.0 s"
    assert [line.split() for line in lines] == [
        ["start-up", "20.0", "s", "20.0%"],
        ["steps", "70.0", "s", "70.0%"],
        ["lost", "to", "kills", "10.0", "s", "10.0%"],
    ]


def train_rows(steps, seconds_per_step):
    return [{"kind": "train", "step": s, "seconds_per_step": seconds_per_step} for s in steps]


def account(clock, step, **seconds):
    return {"kind": "goodput", "step": step, **WallTime(seconds, clock=clock).row()}


def test_a_run_that_was_never_started_before():
    assert sum(earlier_seconds([], []).values()) == 0


def test_steps_behind_the_checkpoint_are_lost(clock):
    """Rows that the killed process had written before the checkpoint still count."""
    saved = account(clock, 50, startup=10.0, steps=100.0, checkpoints=3.0)
    kept = [*train_rows([20, 40], 2.0), saved]
    # Lost are the last 10 of the 20 steps of the first row, and all 20 of the second.
    found = earlier_seconds(kept, train_rows([60, 80], 2.0))
    assert found["lost"] == 60
    assert (found["startup"], found["steps"], found["checkpoints"]) == (10, 100, 3)


def test_an_account_that_was_not_kept_is_lost_as_a_whole(clock):
    """A checkpoint that was being written when the process was killed."""
    kept = [account(clock, 50, startup=10.0, steps=100.0, lost=5.0)]
    dropped = [
        *train_rows([60], 2.0),
        account(clock, 60, startup=10.0, steps=120.0, validation=4.0, lost=5.0),
        *train_rows([80], 2.0),
    ]
    assert earlier_seconds(kept, dropped)["lost"] == 5 + 24 + 40


def test_a_run_that_was_killed_before_its_first_checkpoint(clock):
    dropped = [*train_rows([1], 0.0), account(clock, 1, startup=30.0), *train_rows([5], 2.0)]
    found = earlier_seconds([], dropped)
    assert found.pop("lost") == 38 and not any(found.values())


def test_the_age_of_a_process():
    code = """
import time
from imagewam_jax.training.metrics.goodput import process_seconds
before = process_seconds()
time.sleep(0.3)
print(before, process_seconds())
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    before, after = map(float, done.stdout.split())
    assert after - before + 0.02 >= 0.3 and after <= time.monotonic() - began + 0.02
    assert process_seconds() > before
