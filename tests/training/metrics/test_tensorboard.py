"""Event files, byte for byte as TensorBoard reads them."""

import subprocess
import sys

import numpy as np
import pytest

from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.data.index.tfrecord import walk_records
from imagewam_jax.training.metrics.sinks import EventFile
from tests.training.tiny import trained_run

# TensorFlow must not enter the process of the tests.
READ = """
import sys
from tensorflow.core.util.event_pb2 import Event
for line in sys.stdin:
    event = Event.FromString(bytes.fromhex(line))
    scalars = [(value.tag, value.simple_value) for value in event.summary.value]
    start = event.session_log.status
    print((event.wall_time > 1e9, event.step, event.file_version, start, scalars))
"""


WRITE = """
import sys
from pathlib import Path
from imagewam_jax.training.metrics.watch import EventFile
EventFile(Path(sys.argv[1]), first_step=1).write("train", 1, {"loss": 0.5})
assert not {"tensorflow", "torch"} & sys.modules.keys()
"""


def read_with_tensorflow(folder):
    pytest.importorskip("tensorflow_datasets", reason="needs TensorFlow")
    (path,) = folder.glob("events.out.tfevents.*")
    lines = "\n".join(record.data.hex() for record in walk_records(path))
    command = [sys.executable, "-c", READ]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return [eval(line) for line in done.stdout.splitlines()]


def test_events_are_as_written(tmp_path):
    with_steps = [(1, 0.5), (127, -3.25), (128, 1e30), (3_000_000_000, 0.0)]
    file = EventFile(tmp_path, first_step=301)
    for step, value in with_steps:
        file.write("train", step, {"löss": value})
    file.close()
    version, start, *scalars = read_with_tensorflow(tmp_path)
    assert version == (True, 0, "brain.Event:2", 0, [])
    assert start == (True, 301, "", 1, [])  # a start: what was there from this step on is dropped
    assert [(step, tag) for _, step, _, _, ((tag, _),) in scalars] == [
        (step, "train/löss") for step, _ in with_steps
    ]
    found = [value for *_, ((_, value),) in scalars]
    np.testing.assert_allclose(found, [value for _, value in with_steps], rtol=1e-6)


def test_writing_loads_neither_tensorflow_nor_pytorch(tmp_path):
    """Wherever they are installed."""
    subprocess.run([sys.executable, "-c", WRITE, str(tmp_path)], check=True, timeout=120)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_run_writes_the_same_numbers_twice():
    """Once as lines of JSON, once for TensorBoard."""
    (path,) = (trained_run() / "tensorboard").iterdir()
    assert len(list(walk_records(path))) == 2 + sum(
        len(row) - 2 for row in read_metrics(trained_run() / METRICS_FILE)
    )
