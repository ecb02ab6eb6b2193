"""The benchmark of the input pipeline: both readers read the same, and its script runs."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow_datasets")

from benchmarks import input_pipeline

SCRIPT = Path(input_pipeline.__file__)
pytestmark = pytest.mark.slow(minutes=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("benchmark")


@pytest.fixture(scope="module")
def dataset(folder):
    return input_pipeline.run("write", str(folder), 8, 24)


def test_both_readers_deliver_the_same_samples(dataset):
    ours, theirs = (input_pipeline.run(f"{kind}_epoch", dataset, 16) for kind in ("our", "tf"))
    # Proprioception is random, so it identifies samples.
    one, other = (np.lexsort(epoch["proprio"].T) for epoch in (ours, theirs))
    assert len(one) == len(other) > 100
    assert len(np.unique(ours["proprio"], axis=0)) == len(one)
    for key in ("proprio", "action_is_pad"):
        np.testing.assert_array_equal(ours[key][one], theirs[key][other], err_msg=key)
    # After the end of an episode our actions stand still and theirs repeat.
    inside = ~ours["action_is_pad"][one]
    assert 0 < inside.mean() < 1
    np.testing.assert_array_equal(ours["actions"][one][inside], theirs["actions"][other][inside])
    # Both decode with libjpeg-turbo, so no pixel differs.
    np.testing.assert_array_equal(ours["images"][one], theirs["images"][other])


def test_the_script(folder, dataset):
    result = folder / "result.json"
    options = ["--folder", folder, "--rounds", 2, "--batches", 2, "--soak-steps", 30]
    command = [sys.executable, SCRIPT, *options, "--json", result]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "with resizing (ours on the accelerator)" in done.stdout
    found = json.loads(result.read_text())
    assert found["readers"].keys() == input_pipeline.READERS.keys()
    for name, row in found["readers"].items():
        assert len(row["rounds"]) == 2 and row["rss_mb"] > 50, name
        assert row["samples_per_core_second"] > 0 and row["samples_per_second"] > 0, name
    readers, ratio = found["readers"], found["ratios"]["without resizing"]
    expected = (readers[name]["samples_per_core_second"] for name in ("ours", "tf.data"))
    assert ratio["ratio"] == pytest.approx(next(expected) / next(expected)) and ratio["aim"] == 1.3
    assert found["soak"]["steps"] == 30 and len(found["soak"]["rss_mb"]) == 30
    assert 0 < found["first_batch_seconds"] < 300 and found["index"]["gb_per_second"] > 0
    assert found["versions"].keys() >= {"jax", "grain", "tensorflow-cpu"}
    assert found["machine"]["cores"] >= 1


def test_a_stopped_reader_reads_nothing_ahead(dataset):
    """It has used no CPU time when it goes on."""
    worker = input_pipeline.Worker("ours", dataset, None)
    worker.ask(1)
    worker.stop()
    stat = Path(f"/proc/{worker._process.pid}/stat")
    used = []
    for _ in range(2):
        used.append(sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13])))
        time.sleep(0.5)
    worker.close()
    assert used[1] - used[0] <= 1  # hundredths of a second
