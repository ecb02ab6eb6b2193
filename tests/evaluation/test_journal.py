"""An evaluation that is killed goes on where it was, and finds the same."""

import json
import subprocess
import sys

import pytest

from imagewam_jax.errors import ConfigError
from imagewam_jax.evaluation.journal import Ended, Journal
from tests.training.tiny import ROOT

PROGRAM = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from imagewam_jax.evaluation import closed_loop
from imagewam_jax.evaluation.journal import Journal
from tests.evaluation.fake_simulator import NAME
from tests.evaluation.test_closed_loop import DATASET, StandIn

calls = int(sys.argv[2])
closed_loop.FIRST_SEED = 4
closed_loop.simulators_per_worker = lambda name: 2
demonstrations = {"go forward": [np.ones((12, 1))], "go backward": [-np.ones((12, 1))]}
closed_loop.demonstrations_by_instruction = lambda dataset, split: demonstrations


class Wanderer(StandIn):
    def act(self, observations, noise):
        global calls
        calls -= 1
        if calls == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.clip(noise + 0.3, -1, 1)


with Journal(Path(sys.argv[1]), {"policy": "wanderer"}, resume=True) as journal:
    success, results, _ = closed_loop.evaluate_closed_loop(
        Wanderer(),
        DATASET,
        NAME,
        episodes=12,
        workers=1,
        journal=journal,
        films=Path(sys.argv[1]).with_suffix(""),
    )
table = {name: [r.success.tolist(), r.steps.tolist(), success[name]] for name, r in results.items()}
print(json.dumps(table))
"""


def play(path, calls: int) -> subprocess.CompletedProcess:
    """Evaluates, and kills itself when the policy is asked for the `calls`th time."""
    command = [sys.executable, "-c", PROGRAM, path, str(calls)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
def test_an_evaluation_that_is_killed_twice_finds_the_same(tmp_path):
    whole = play(tmp_path / "whole.jsonl", calls=0)
    assert whole.returncode == 0, whole.stderr
    killed, lengths = tmp_path / "killed.jsonl", []
    for calls in (9, 20):  # the second is in another variant
        assert play(killed, calls).returncode == -9
        lengths.append(len(killed.read_text().splitlines()))
    killed.write_text(killed.read_text() + '{"way": "policy, bl')  # a kill within a line
    resumed = play(killed, calls=0)
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout) == json.loads(whole.stdout)
    rates = [sum(found[0]) for found in json.loads(whole.stdout).values()]
    assert len(rates) == 5 and 0 < rates[0] < 12  # the comparison says something
    lines = [json.loads(line) for line in killed.read_text().splitlines()]
    assert 1 < lengths[0] < lengths[1] < len(lines) == 1 + 5 * 12
    assert len({(line["way"], line["task"], line["seed"]) for line in lines[1:]}) == 5 * 12
    films = {path: path.read_bytes() for path in sorted((tmp_path / "whole").rglob("*.*"))}
    assert {path.relative_to(tmp_path / "whole"): film for path, film in films.items()} == {
        path.relative_to(tmp_path / "killed"): path.read_bytes()
        for path in (tmp_path / "killed").rglob("*.*")
    }
    assert len(films) >= 2 * 4 + 5 * 2  # strips, and a success or a failure of two tasks
    ended = {json.dumps(line) for line in lines[1:]}
    assert ended == set((tmp_path / "whole.jsonl").read_text().splitlines()[1:])


EPISODES = [("push", 0), ("pull", 0), ("push", 1)]


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "episodes.jsonl"
    with Journal(path, {"step": 8, "options": {"suites": ("a",)}}, resume=True) as journal:
        assert journal.ended("policy", EPISODES) == {}
        journal.add("policy", EPISODES[2], Ended(True, 7))
        journal.add("random", EPISODES[0], Ended(False, 12))
        assert journal.ended("policy", EPISODES) == {2: Ended(True, 7)}
    return path


def test_ended_episodes_are_known_again(written):
    with Journal(written, {"step": 8, "options": {"suites": ["a"]}}, resume=True) as journal:
        assert journal.ended("policy", EPISODES) == {2: (True, 7)}
        assert journal.ended("random", EPISODES[:1]) == {0: (False, 12)}


def test_episodes_of_another_evaluation_are_refused_or_replaced(written):
    other = {"step": 9, "options": {"suites": ("a",)}}
    with pytest.raises(ConfigError, match=r"step was 8 and is 9. Evaluate without --resume"):
        Journal(written, other, resume=True)
    assert len(written.read_text().splitlines()) == 3
    with Journal(written, other, resume=False) as journal:
        assert journal.ended("policy", EPISODES) == {}
    assert len(written.read_text().splitlines()) == 1


@pytest.mark.parametrize("text", ["none\n", "1\n", "[1]\n"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "episodes.jsonl").write_text(text)
    with pytest.raises(ConfigError, match="not a list of ended episodes"):
        Journal(tmp_path / "episodes.jsonl", {}, resume=True)
