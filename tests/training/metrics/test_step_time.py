"""What a step costs besides the work of the device."""

import time

import jax.numpy as jnp
import pytest

from imagewam_jax.training import step
from imagewam_jax.training import train as loop
from tests.training.tiny import copy_sample, tiny_config

STEPS = 500
METRICS = 7  # that a step has
LIMIT_S = 4e-3


def idle_step(settings, state, batch, assets):
    """Takes and returns what a step does and computes nothing: a CPU that is the device too would
    do that in the thread that is measured."""
    metrics = {f"metric_{n}": jnp.zeros(()) for n in range(METRICS)}
    return state._replace(step=state.step + 1), metrics


@pytest.mark.slow
def test_what_python_takes_of_a_step(tmp_path, monkeypatch):
    """Time of the thread that gives steps to the device: it takes a batch, calls the step,
    and watches. Time in which it waits, for data or the device, is not counted. On a quiet machine
    it is below a millisecond; the limit is for slow ones, which other work keeps busy too."""
    times = []

    class Timed(loop.Watch):
        def steps(self, last):
            for number in super().steps(last):
                times.append(time.thread_time())
                yield number

    monkeypatch.setattr(loop, "Watch", Timed)
    monkeypatch.setattr(step, "train_step", idle_step)
    config = tiny_config(copy_sample(tmp_path))
    config.train.steps = config.train.checkpoint_every = STEPS
    config.train.log_every = 20
    loop.train(config, tmp_path / "run")
    # Rows of metrics among them; neither compiling nor the checkpoint at the end.
    per_step = [(times[n + 40] - times[n]) / 40 for n in range(20, STEPS - 40, 40)]
    print(f"{1e6 * min(per_step):.0f} to {1e6 * max(per_step):.0f} us of Python per step")
    assert min(per_step) < LIMIT_S
