"""Rows reach every sink, in order and without waiting for the device."""

import json
import threading

import jax
import jax.numpy as jnp
import pytest

from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.training.metrics.sinks import JsonLines, MetricsWriter


class Kept:
    """A sink that tests can block and let fail."""

    def __init__(self, error=None):
        self.rows, self.closed, self.error = [], False, error
        self.open = threading.Event()
        self.open.set()

    def write(self, kind, step, values):
        self.open.wait()
        if self.error:
            raise self.error
        self.rows.append((kind, step, values))

    def close(self):
        self.closed = True


def test_rows_are_means_and_go_to_every_sink():
    sinks = Kept(), Kept()
    writer = MetricsWriter(sinks)
    writer.write("train", 2, [{"loss": jnp.float32(1)}, {"loss": jnp.float32(2)}], {"mfu": 0.5})
    writer.write("goodput", 2, extra={"goodput": 0.9})
    writer.close()
    expected = [("train", 2, {"loss": 1.5, "mfu": 0.5}), ("goodput", 2, {"goodput": 0.9})]
    assert sinks[0].rows == sinks[1].rows == expected
    assert sinks[0].closed and sinks[1].closed
    assert writer.latest == {"train": {"loss": 1.5, "mfu": 0.5}, "goodput": {"goodput": 0.9}}


def test_the_loop_does_not_wait_for_a_sink():
    sink = Kept()
    sink.open.clear()
    writer = MetricsWriter([sink])
    for step in range(10):
        writer.write("train", step, [{"loss": jnp.float32(step)}])
    assert sink.rows == []
    sink.open.set()
    writer.close()
    assert [step for _, step, _ in sink.rows] == list(range(10))


def test_without_sinks_nothing_is_fetched(monkeypatch):
    monkeypatch.setattr(jax, "device_get", None)
    writer = MetricsWriter([])
    writer.write("train", 1, [{"loss": jnp.float32(1)}])
    writer.close()
    assert writer.latest == {}


def test_what_a_sink_raises_is_raised_and_the_others_are_closed():
    sinks = Kept(OSError("the disk is full")), Kept()
    writer = MetricsWriter(sinks)
    writer.write("train", 1, [{"loss": jnp.float32(1)}])
    with pytest.raises(OSError, match="the disk is full"):
        writer.close()
    assert sinks[0].closed and sinks[1].closed


def test_lines_behind_the_first_step_are_dropped(tmp_path):
    lines = JsonLines(tmp_path, first_step=0)
    for step in (1, 2, 3):
        lines.write("train", step, {"loss": step / 2})
    lines.close()
    with (tmp_path / METRICS_FILE).open("a") as file:
        file.write('{"kind": "tra')  # killed while it wrote
    lines = JsonLines(tmp_path, first_step=2)
    rows = [{"kind": "train", "step": s, "loss": s / 2} for s in (1, 2, 3)]
    assert lines.kept == rows[:2] and lines.dropped == rows[2:]
    lines.write("train", 3, {"loss": 9.0})
    written = (tmp_path / METRICS_FILE).read_text().splitlines()  # before it is closed
    assert [json.loads(line) for line in written] == read_metrics(tmp_path / METRICS_FILE)
    assert read_metrics(tmp_path / METRICS_FILE)[-1]["loss"] == 9.0
    lines.close()


def test_rows_that_are_not_finite_are_counted_and_are_not_in_the_means():
    sink = Kept()
    writer = MetricsWriter([sink])
    rows = [{"loss": jnp.float32(x), "norm": jnp.float32(y)} for x, y in ((1, 2), (5, "inf"))]
    writer.write("train", 2, rows, {"mfu": 0.5})
    writer.write("train", 4, rows[1:])
    writer.close()
    assert sink.rows[0] == ("train", 2, {"loss": 1.0, "norm": 2.0, "not_finite": 1, "mfu": 0.5})
    assert sink.rows[1] == ("train", 4, {"loss": 5.0, "norm": float("inf"), "not_finite": 1})
