"""The benchmark of reading from a bucket: its script runs."""

import json
import subprocess
import sys

import pytest

from benchmarks import object_storage

pytestmark = pytest.mark.slow


def test_the_script(tmp_path):
    result = tmp_path / "result.json"
    options = ["--seconds=0.5", "--delay=0.02", "--concurrent", "16", "64", f"--json={result}"]
    command = [sys.executable, "-m", object_storage.__name__, *options]
    done = subprocess.run(command, cwd=object_storage.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(result.read_text())
    assert len(found) == 1 + 2 * 2
    for name, row in found.items():
        assert f"| {name} | " in done.stdout and row["samples_per_second"] > 0
        # A request that is sent again can meet itself on its way.
        assert row["most"] <= 2 * 64 and (row["requests"] == 0) == (name == "files")
