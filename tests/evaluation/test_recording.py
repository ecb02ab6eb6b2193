"""`imagewam evaluate --record`: what was played, as TFDS reads it, and as this package does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagewam_jax import cli
from imagewam_jax.config.defaults import defaults
from imagewam_jax.data.dataset_spec import Camera, DatasetSpec, Encoding, absolute
from imagewam_jax.data.datasets import config_data
from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import default_index_dir
from imagewam_jax.data.tools.rollouts import read_episode, recorded_row
from imagewam_jax.errors import ConfigError, DataError
from imagewam_jax.evaluation import closed_loop, recording
from imagewam_jax.evaluation.closed_loop import POLICY, evaluate_closed_loop
from imagewam_jax.evaluation.journal import Journal
from imagewam_jax.evaluation.recording import open_recording
from imagewam_jax.policy.policy import load_policy
from imagewam_jax.training.train import train
from tests.evaluation.fake_simulator import NAME as FAKE
from tests.evaluation.opengl import require_metaworld
from tests.evaluation.test_closed_loop import DATASET, StandIn
from tests.training.tiny import tiny_config, trained_run

tfds = pytest.importorskip("tensorflow_datasets", reason="needs the extra 'tfds'")

SPEC = DatasetSpec(
    name="line",
    cameras=(("primary", Camera("observation/front")), ("secondary", Camera("observation/x/1"))),
    action=Encoding("move", ("x",), (True,)),
    state=absolute("place", "x"),
    control_hz=5.0,
    transform="columns",
    action_keys=("some_action",),
    state_keys=("some_state",),
)
IDENTITY = {"checkpoint": "0123456789abcdef", "step": 7, "simulator": FAKE, "options": {"side": 16}}
KEYS = ["observation/front", "observation/secondary"]


@pytest.fixture
def fake(monkeypatch):
    """Starts at 4, 5, ...: going forward succeeds from there, and going backward never does."""
    monkeypatch.setattr(closed_loop, "FIRST_SEED", 4)
    monkeypatch.setattr(closed_loop, "simulators_per_worker", lambda name: 2)
    monkeypatch.setattr(closed_loop, "demonstrations_by_instruction", lambda *_: {})


def play(folder: Path, episodes: int, resume: bool = False, build: bool = False) -> Path:
    """Evaluates and records in `folder`; returns the folder of the recording."""
    with (
        open_recording(folder, SPEC, StandIn.cameras, IDENTITY, resume=resume) as recorder,
        Journal(folder / "episodes.jsonl", IDENTITY, resume=resume) as journal,
    ):
        evaluate_closed_loop(
            StandIn(),
            DATASET,
            FAKE,
            options=IDENTITY["options"],
            episodes=episodes,
            workers=1,
            journal=journal,
            recording=recorder,
        )
        if build:
            recorder.build()
    return folder / "line_rollouts"


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = sorted((folder / ".episodes").glob("*.npz"))
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


def test_an_episode_is_there_once_however_often_it_is_resumed(fake, tmp_path):
    folder = play(tmp_path, 3)
    before = files(folder)
    assert list(before) == ["000000.npz", "000001.npz", "000002.npz"]
    forward = read_episode(folder / ".episodes" / "000000.npz")
    assert (forward.episode["task"], forward.episode["seed"]) == ("forward", 4)
    assert set(forward.instructions) == {"go forward"} and forward.success is True
    # Seen before every action, and not only when the policy planned.
    assert forward.states[:, 0].tolist() == [4, 5, 6, 7, 8, 9]
    assert forward.actions[:, 0].tolist() == [1] * 6
    assert {key: len(images) for key, images in forward.images.items()} == dict.fromkeys(KEYS, 6)
    assert not read_episode(folder / ".episodes" / "000001.npz").success

    (folder / ".episodes" / "000001.npz").unlink()  # as when it is killed before the file is there
    (folder / ".episodes" / ".000003.npz.partial-host-1").write_bytes(b"half")
    play(tmp_path, 4, resume=True)
    after = files(folder)
    assert list(after) == [*before, "000003.npz"]
    assert [name for name in before if after[name][0] != before[name][0]] == ["000001.npz"]
    assert [after[name][1] for name in before] == [content for _, content in before.values()]
    lines = (tmp_path / "episodes.jsonl").read_text().splitlines()[1:]
    told = [(line["way"], line["task"], line["seed"]) for line in map(json.loads, lines)]
    assert len(set(told)) == len(told) and sum(way == POLICY for way, *_ in told) == 4


def test_another_recording_is_never_mixed_in(fake, tmp_path):
    folder = play(tmp_path, 1)
    with (
        pytest.raises(ConfigError, match=f"{folder}: holds a recording; go on with it by --resume"),
        open_recording(tmp_path, SPEC, StandIn.cameras, IDENTITY, resume=False),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="step was 7 and is 8"),
        open_recording(tmp_path, SPEC, StandIn.cameras, IDENTITY | {"step": 8}, resume=True),
    ):
        pass
    assert list(files(folder)) == ["000000.npz"]


def test_what_is_missing_is_told(fake, tmp_path, monkeypatch, capfd):
    folder = play(tmp_path, 1)
    (folder / ".episodes" / "000000.npz").write_bytes(b"something else")
    with (
        open_recording(tmp_path, SPEC, StandIn.cameras, IDENTITY, resume=True) as recorder,
        pytest.raises(DataError, match="the recorded episodes could not be written as RLDS"),
    ):
        recorder.build()
    error = capfd.readouterr().err
    assert "000000.npz: not an episode of a recording" in error and "Traceback" not in error
    monkeypatch.setattr(recording, "find_spec", lambda name: None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'imagewam-jax\[tfds\]'"),
        open_recording(tmp_path, SPEC, StandIn.cameras, IDENTITY, resume=True),
    ):
        pass


def test_the_dataset_as_tfds_and_as_this_package_read_it(fake, tmp_path, capsys):
    play(tmp_path, 2, build=True)
    folder = play(tmp_path, 4, resume=True, build=True)  # made anew, with two more
    version = folder / "1.0.0"
    assert sorted(path.name for path in folder.iterdir()) == [".episodes", "1.0.0"]
    episodes = list(tfds.as_numpy(tfds.builder_from_directory(version).as_dataset(split="train")))
    assert len(episodes) == 4
    for number, episode in enumerate(episodes):
        forward = number % 2 == 0
        start, length = 4 + number // 2, (6 - number // 2) if forward else 12
        metadata = episode["episode_metadata"]
        assert metadata["task"].decode() == ("forward" if forward else "backward")
        assert (metadata["seed"], metadata["success"]) == (start, forward)
        assert metadata["policy"].decode() == IDENTITY["checkpoint"]
        assert (metadata["policy_step"], metadata["simulator"].decode()) == (7, FAKE)
        assert json.loads(metadata["options"]) == {"side": 16}
        assert json.loads(metadata["evaluation"]) == IDENTITY
        steps = list(episode["steps"])
        # It stops where it sees black when it plans, every four steps: at 0, or at -3.
        back = np.maximum(start - np.arange(length), 0 if start == 4 else -3)
        places = start + np.arange(length) if forward else back
        moves = np.diff(places, append=places[-1] + forward)
        assert [s["observation"]["state"][0] for s in steps] == places.tolist()
        for t, step in enumerate(steps):
            assert step["observation"]["front"].shape == (16, 16, 3)
            seen = step["observation"]["secondary"].astype(int)
            assert np.abs(seen - max(places[t], 0)).max() <= 1
            last = t == length - 1
            assert (step["is_first"], step["is_last"]) == (t == 0, last)
            assert step["is_terminal"] == step["reward"] == (last and forward)
            assert step["discount"] == 1 - (last and forward)
            assert step["action"] == [moves[t]]
            assert step["language_instruction"].decode() == f"go {'for' if forward else 'back'}ward"

    assert cli.main(["data", "check", str(version)]) == 0
    assert "4 episodes" in capsys.readouterr().out
    row = json.loads((version / "row.json").read_text())["line_rollouts"]
    assert row == recorded_row(SPEC, StandIn.cameras) and list(row["cameras"].values()) == KEYS
    section = defaults().data.to_dict() | {
        "directory": str(version),
        "dataset": "line_rollouts",
        "rows": {"line_rollouts": row},
        "cameras": StandIn.cameras,
    }
    build_index(version, default_index_dir(version), progress=False)
    config = defaults().to_dict() | {"data": section}
    opened = config_data(config)["line_rollouts"]
    assert (opened.spec.action, opened.spec.state) == (SPEC.action, SPEC.state)
    assert opened.instructions == ("go backward", "go forward")
    assert opened.standardized.splits["train"].actions[:6, 0].tolist() == [1] * 6


def evaluate(folder: Path, *more: str) -> subprocess.CompletedProcess:
    """Evaluates the tiny policy in a process of its own, which says at its end what it imported."""
    code = (
        "import sys\nfrom imagewam_jax.cli import main\nstatus = main(sys.argv[1:])\n"
        "print('imported', sorted({'tensorflow', 'mujoco'} & set(sys.modules)))\nsys.exit(status)"
    )
    arguments = [
        "evaluate",
        f"--checkpoint={trained_run()}",
        f"--output={folder / 'evaluation'}",
        "--simulator=metaworld_faucet",
        "--option=image_side=64",
        "--workers=1",
        f"--record={folder}",
        *more,
    ]
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_a_policy_is_trained_on_what_another_did(tmp_path):
    require_metaworld()
    done = evaluate(tmp_path, "--episodes=2")
    assert done.returncode == 0, done.stderr
    assert "imported []" in done.stdout  # TensorFlow was in another process
    assert evaluate(tmp_path, "--episodes=3").returncode == 1
    done = evaluate(tmp_path, "--episodes=3", "--resume")
    assert done.returncode == 0, done.stderr
    version = tmp_path / "metaworld_faucet_rollouts" / "1.0.0"
    assert f"recorded 3 episodes: {version}" in done.stdout
    assert cli.main(["data", "check", str(version)]) == 0

    config = tiny_config(version)
    config.data.dataset = "metaworld_faucet_rollouts"
    config.data.rows = json.loads((version / "row.json").read_text())
    config.data.train_split = config.data.eval_split = "train"
    config.train.steps = 1
    train(config, tmp_path / "run")
    assert load_policy(tmp_path / "run").step == 1
    # Its keys are those of the demonstrations, and so is what they mean: their row reads it, too.
    opened = [
        config_data({**config.to_dict(), "data": {**config.data.to_dict(), "rows": rows}})
        for rows in (
            config.data.rows.to_dict(),
            {config.data.dataset: {"like": "metaworld_faucet"}},
        )
    ]
    first, second = (data["metaworld_faucet_rollouts"].standardized for data in opened)
    np.testing.assert_array_equal(first.splits["train"].actions, second.splits["train"].actions)
    np.testing.assert_array_equal(first.splits["train"].states, second.splits["train"].states)
    episode = read_episode(version.parent / ".episodes" / "000000.npz")
    assert (episode.episode["task"], episode.episode["seed"]) == ("faucet-open", 10_000)
    assert episode.success or len(episode.actions) == 150
