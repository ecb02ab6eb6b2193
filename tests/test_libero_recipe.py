"""The LIBERO recipe in its small size, by the commands that users run, a few steps per stage.

`make libero` makes demonstrations, networks and weights, trains in float32 and evaluates. What is
made there is then trained in the recipe's bfloat16 with LoRA on two devices, killed and resumed,
evaluated, exported to the official layout, converted back, and compared.
"""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.libero import get_config
from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from launch.local import IMAGEWAM
from tests.commands import ENVIRONMENT, run
from tests.evaluation.opengl import require_libero

pytestmark = pytest.mark.whole
ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/libero.py:tiny"
STEPS = 4
SPLIT = "--split=train[:1]"  # the recipe's part for validation has none of two episodes
# Episodes of two decisions: an untrained policy would play each to the benchmark's last step.
OPTIONS = get_config("tiny").evaluation.options.to_dict() | {"max_steps": 24}
SHORT = " ".join(shlex.quote(f"--option={name}={value}") for name, value in OPTIONS.items())


def imagewam(*arguments) -> str:
    return run([*IMAGEWAM, *arguments], ROOT)


def train_steps(workdir: Path) -> list[int]:
    """The steps of a run's training rows, in the order in which they were written."""
    rows = read_metrics(workdir / METRICS_FILE)
    return [row["step"] for row in rows if row["kind"] == "train"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The folder that `make libero` filled, with the environment of the tests as its own."""
    require_libero()
    for extra in ("tensorflow_datasets", "transformers"):
        pytest.importorskip(extra, reason="make libero installs it")
    runs = tmp_path_factory.mktemp("runs")
    installed = [option for target in (".venv/demo", ".venv/libero") for option in ("-o", target)]
    few = {
        "LIBERO_DEMONSTRATIONS": 1,
        "LIBERO_AUTOENCODER_STEPS": 2,
        "LIBERO_TRAIN": f"--config.train.steps={STEPS} --config.train.batch_size=8 "
        "--config.train.log_every=1 --config.train.validate_every=0",
        "LIBERO_EVALUATE": f"--episodes=2 {SHORT} --samples=4 {shlex.quote(SPLIT)}",
    }
    where = {"BIN": Path(sys.executable).parent, "RUNS": runs}
    settings = [f"{name}={value}" for name, value in (where | few).items()]
    run(["make", *installed, "-o", "opengl", *settings, "libero"], ROOT, PYTHONPATH=str(ROOT))
    return runs / "libero"


def test_make_libero_trains_and_evaluates(made):
    assert train_steps(made / "run") == list(range(1, STEPS + 1))
    found = json.loads((made / "run" / "evaluation" / "evaluation.json").read_text())
    policies = found["closed_loop"]
    assert set(policies) >= {"policy", "policy, other instruction", "policy, black image"}
    for variant in policies.values():
        assert variant["episodes"] == 2
    assert (made / "run" / "evaluation" / "report.html").stat().st_size > 10_000


def train_command(made: Path, workdir: Path) -> list:
    """The recipe's own precision, LoRA, and as many devices as there are."""
    settings = {
        "data.directory": made / "rlds" / "libero_goal_no_noops" / "1.0.0",
        "train.initial_weights": made / "weights" / "klein-tiny",
        "autoencoder.weights": made / "weights" / "autoencoder",
        "text.table": made / "text.safetensors",
        "model.lora.rank": 4,
        "model.lora.alpha": 4.0,
        "train.batch_size": 4,
        "train.steps": 6,
        "train.checkpoint_every": 2,
        "train.log_every": 1,
        "train.validate_every": 0,
    }
    fields = [f"--config.{name}={value}" for name, value in settings.items()]
    return [
        *(*IMAGEWAM, "train", f"--config={CONFIG}", f"--workdir={workdir}", "--resume"),
        *fields,
    ]


@pytest.fixture(scope="module")
def killed(made, tmp_path_factory) -> Path:
    """A run on two devices that was killed after its first checkpoint, and resumed."""
    workdir = tmp_path_factory.mktemp("lora") / "run"
    command = [str(part) for part in train_command(made, workdir)]
    two_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT | two_devices) as process:
        while not list(workdir.glob("checkpoints/2/commit_success.txt")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert "devices: 2 x cpu" in run(command, ROOT, **two_devices)
    return workdir


def test_bfloat16_and_lora_on_two_devices_survive_a_kill(killed):
    steps = train_steps(killed)
    assert sorted(set(steps)) == [1, 2, 3, 4, 5, 6]
    assert steps[-1] == 6
    printed = imagewam("evaluate", f"--checkpoint={killed}", "--no-simulator", SPLIT)
    assert "report:" in printed


def test_what_was_trained_goes_to_the_official_layout_and_back(made, killed, tmp_path):
    torch = pytest.importorskip("torch", reason="writes model.pt")
    first, again = tmp_path / "official", tmp_path / "again"
    imagewam("export", killed, "--format=official", f"--to={first}")
    dataset = made / "rlds" / "libero_goal_no_noops" / "1.0.0"
    config = ["--config", CONFIG, f"--config.data.directory={dataset}"]
    sources = [first / "model.pt", made / "released" / "ae.safetensors"]
    imagewam("convert", *sources, "--to", tmp_path / "back", *config)
    imagewam("export", tmp_path / "back", "--format=official", f"--to={again}")
    expected, found = (torch.load(folder / "model.pt")["mot"] for folder in (first, again))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name

    imagewam("record", tmp_path / "back", f"--to={tmp_path / 'recording'}")
    compared = imagewam("verify", tmp_path / "back", tmp_path / "recording")
    assert "all pass" in compared
