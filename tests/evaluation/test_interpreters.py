"""Simulators under another Python, whose environment is not ours."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.rollout import random_policy, rollout
from imagewam_jax.evaluation.simulators import interpreters
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from tests.evaluation.fake_simulator import NAME, FakeSimulator
from tests.evaluation.opengl import require_metaworld
from tests.shared_folder import shared
from tests.training.tiny import ROOT

OURS = Path(np.__file__).parents[1]
EPISODES = [("forward", 7), ("backward", 0), ("forward", 0), ("forward", 9), ("backward", 5)]


def other_python(name: str, *packages: str) -> Path:
    """The Python of a fresh environment that has these packages of ours alone."""

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
        (folder / "packages").mkdir()
        for package in packages:
            for path in OURS.glob(package):
                (folder / "packages" / path.name).symlink_to(path)
        (site,) = (folder / "env" / "lib").glob("python*/site-packages")
        (site / "ours.pth").write_text(f"{folder / 'packages'}\n")

    return shared(f"python-{name}", make) / "env" / "bin" / "python"


def needed() -> Path:
    return other_python("needed", "numpy*", "jaxtyping*", "wadler_lindig*")


def play(python: str | None = None) -> list:
    """All that can be seen and happens in some episodes, in order."""
    options = {"side": 4} | ({"python": python} if python else {})
    with SimulatorPool(NAME, num_simulators=3, num_workers=2, options=options) as pool:
        assert pool.spec == FakeSimulator.spec
        policy, seen = random_policy(pool.spec, horizon=4), []

        def watch(batch):
            seen.append((batch.images_bnhwc.tobytes(), batch.state_bp.tobytes()))
            return policy(batch)

        result = rollout(pool, watch, EPISODES, execute_steps=3)
        return [seen, result.success.tolist(), result.steps.tolist()]


def test_it_plays_what_is_played_in_ours(monkeypatch):
    monkeypatch.chdir(ROOT)  # where the simulator's module is
    assert play(str(needed())) == play()


def test_it_finds_nothing_of_our_environment_but_the_package(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", "/nowhere")  # of ours, whoever set it
    python = needed()
    options = {"python": str(python)}
    with SimulatorPool(NAME, num_simulators=1, num_workers=1, options=options) as pool:
        prefix, numpy_file, *path = pool.reset({0: ("places", 0)})[0].instruction.split("\n")
        (folder,) = (Path(place) for place in path if "imagewam-" in Path(place).name)
        assert [entry.name for entry in folder.iterdir()] == ["imagewam_jax"]
    assert Path(prefix) == python.parents[1] and str(OURS) not in path and "/nowhere" not in path
    assert Path(numpy_file).is_relative_to(python.parents[2] / "packages")
    assert not folder.exists()  # it is gone with the pool


def refused(python: Path | str, message: str) -> None:
    options = {"python": str(python)}
    with pytest.raises(SimulatorError, match=message) as error:
        SimulatorPool(NAME, num_simulators=1, num_workers=1, options=options)
    assert "Traceback" not in str(error.value) and "\n" not in str(error.value)


def test_an_interpreter_that_cannot_be_used_is_told(tmp_path, monkeypatch):
    refused(tmp_path / "python", f"^python={tmp_path}/python: no such interpreter; give the path")
    (tmp_path / "text").write_text("no program")
    refused(tmp_path / "text", "no such interpreter")  # it is not executable
    (tmp_path / "text").chmod(0o755)
    refused(tmp_path / "text", "cannot be used: Exec format error")
    refused("/bin/cat", "^python=/bin/cat: cannot be used: it does not answer as Python does")
    bare = other_python("bare")
    refused(bare, f"lacks numpy and jaxtyping: {bare} -m pip install numpy jaxtyping")
    monkeypatch.setattr(interpreters, "OLDEST", (3, 99))
    refused(needed(), r"Python 3\.\d+, expected 3.99 or newer")


def test_a_simulator_that_its_environment_lacks(tmp_path, monkeypatch):
    """The error is one line, with the interpreter that it is to be installed for."""
    monkeypatch.chdir(ROOT)
    options = {"python": str(needed())}
    for name, message in (
        ("metaworld", "metaworld worker 0: Meta-World is not installed"),
        ("metaworld_faucet", f"metaworld_faucet worker 0: {needed()}: MuJoCo is not installed"),
        ("tests.training.tiny:tiny_config", f"worker 0: {needed()}: No module named 'jax'"),
    ):
        with pytest.raises(SimulatorError, match=message) as error:
            SimulatorPool(name, num_simulators=1, num_workers=1, options=options)
        assert "\n" not in str(error.value)


def test_a_worker_of_another_version_is_told(tmp_path, monkeypatch):
    """The folder in which it starts has an older package of this name."""
    package = Path(interpreters.__file__).resolve().parents[2]
    old = tmp_path / package.name
    for file in ("errors", *(f"evaluation/simulators/{n}" for n in ("__init__", "base", "worker"))):
        (old / file).parent.mkdir(parents=True, exist_ok=True)
        (old / f"{file}.py").write_text((package / f"{file}.py").read_text())
    messages = (package / "evaluation/simulators/messages.py").read_text()
    assert "\nPROTOCOL = 1 " in messages
    changed = messages.replace("\nPROTOCOL = 1 ", "\nPROTOCOL = 9 ")
    (old / "evaluation/simulators/messages.py").write_text(changed)
    for folder in (old, old / "evaluation"):
        (folder / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    refused(needed(), "talk by protocol 1, found protocol 9: .* different versions of imagewam_jax")


def test_options_that_cannot_be_sent_are_refused():
    with pytest.raises(ConfigError, match=r"options of the simulator .*: .*not JSON serializable"):
        SimulatorPool(NAME, num_simulators=1, num_workers=1, options={"side": {1, 2}})


@pytest.mark.slow
def test_a_real_simulator_is_the_same_to_the_bit():
    require_metaworld()
    python = other_python("all", "*")
    actions = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)
    found = []
    for options in ({}, {"python": str(python)}):
        with SimulatorPool(
            "metaworld_faucet", num_simulators=2, num_workers=1, options=options
        ) as pool:
            starts = pool.reset({0: ("faucet-open", 3), 1: ("faucet-close", 4)})
            outcomes = pool.execute({0: actions, 1: -actions}, every_step=True)
            found.append([pool.spec, *_numbers(starts, outcomes)])
    assert found[0] == found[1] and len(found[0]) == 1 + 2 + 2 * 20


def _numbers(starts, outcomes) -> list[tuple]:
    seen = [*starts.values()]
    for outcome in outcomes.values():
        seen += [*outcome.seen, outcome.observation]
    return [(o.images_nhwc.tobytes(), o.state.tobytes(), o.instruction) for o in seen]
