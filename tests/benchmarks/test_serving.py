"""The benchmark of the server runs, and robots under load are served alike."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import serving
from tests.serving.robots import served, tiny_actor
from tests.training.tiny import ROOT, trained_run

pytestmark = pytest.mark.slow(minutes=2)


@pytest.fixture(scope="module")
def url():
    with served(*tiny_actor()) as running:
        yield running.url


@pytest.mark.parametrize("clients", [1, 2, 8, 32])
def test_clients_are_served_alike(url, clients):
    """In a closed loop every one gets about as much, and no call takes as long as two seconds."""
    found = asyncio.run(serving.together(url, clients, 5.0))
    assert found["fairness"] <= 1.2
    assert found["call"]["p50"] <= found["call"]["p95"] <= found["call"]["p99"] < 2000
    assert 0 < found["own"]["p50"] < found["call"]["p50"]


def test_clients_that_ask_at_random_times(url):
    found = asyncio.run(serving.together(url, 8, 5.0, rate=40.0))
    assert found["chunks_per_second"] == pytest.approx(40.0, rel=0.3)
    assert found["call"]["p99"] < 2000


def test_the_script(tmp_path):
    script, result = Path(serving.__file__), tmp_path / "result.json"
    command = [sys.executable, str(script), f"--checkpoint={trained_run()}", f"--json={result}"]
    command += ["--clients", "1", "4", "--seconds=1", "--turns=2", "--buckets=1,4"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=ROOT, check=True
    )
    found = json.loads(result.read_text())
    assert [row["clients"] for row in found["together"]] == [1, 1, 4, 4]
    added = found["in_turns"]["call"]["p50"] - found["in_turns"]["acting"]["p50"]
    assert found["in_turns"]["added_ms"] == pytest.approx(added, abs=0.02)
    assert "served, 1 client" in done.stdout
