"""What rows of metrics say of speed and memory."""

from types import SimpleNamespace

import jax
import pytest

from imagewam_jax.training.metrics.goodput import WallTime
from imagewam_jax.training.metrics.work import Window, Work, device_memory


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_speed_is_of_the_steps_that_were_finished():
    clock = Clock()
    wall = WallTime(clock=clock)
    window = Window(wall, Work(samples=64, flops=3e12, peak_flops=1e13))
    clock.now += 60  # compiling
    wall.step_done()
    assert window.speed() == {}  # the first step is start-up
    for _ in range(10):
        with wall.phase("data_wait"):
            clock.now += 0.1
        clock.now += 0.9
        wall.step_done()
    with wall.phase("validation"):
        clock.now += 30
    speed = window.speed()
    assert speed["seconds_per_step"] == pytest.approx(1.0)
    assert speed["samples_per_second"] == pytest.approx(64)
    assert speed["data_wait"] == pytest.approx(0.1)
    assert speed["mfu"] == pytest.approx(0.3)
    assert Window(wall, Work(64)).speed() == {}


def test_no_mfu_where_the_peak_is_not_known():
    clock = Clock()
    wall = WallTime(clock=clock)
    wall.step_done()
    window = Window(wall, Work(samples=8, flops=1e9))
    clock.now += 2
    wall.step_done()
    assert window.speed() == {"seconds_per_step": 2, "samples_per_second": 4, "data_wait": 0}


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    stats = [
        {"bytes_in_use": 3 * 2**30, "peak_bytes_in_use": 8 * 2**30},
        {"bytes_in_use": 4 * 2**30, "peak_bytes_in_use": 5 * 2**30},
    ]
    devices = [SimpleNamespace(memory_stats=lambda found=found: found) for found in stats]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert device_memory() == {"hbm_gib": 4, "hbm_peak_gib": 8}


def test_a_cpu_has_no_memory_to_tell_of(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices("cpu"))
    assert device_memory() == {}
