"""The client as a robot's computer has it: `pip install ./client`, and nothing of JAX."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.serving.robots import served, tiny_actor

ROOT = Path(__file__).resolve().parents[2]
# A control loop in a process that finds no package but those that the client may need.
ROBOT = """
import importlib.abc, sys

class Refuses(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top in sys.stdlib_module_names or top in {"numpy", "msgpack", "websockets"}:
            return None
        if top == "imagewam_jax":
            return None
        raise ModuleNotFoundError(f"a robot's computer has no {top}", name=top)

sys.meta_path.insert(0, Refuses())
import imagewam_jax
assert imagewam_jax.__file__.startswith(sys.argv[1]), imagewam_jax.__file__

import numpy as np
from imagewam_jax.client.broker import ChunkBroker
from imagewam_jax.client.remote import RemotePolicy

policy = RemotePolicy(sys.argv[2])
broker = ChunkBroker(policy, mode="sync", execute_steps=2)
for step in range(5):
    reply = broker.infer({
        "observation/image": np.full((64, 64, 3), step, np.uint8),
        "observation/state": np.zeros(4, np.float32),
        "prompt": "open the faucet",
    })
    assert reply["actions"].shape == (4,) and reply["imagewam/held"] == ""
broker.close()
print("acted")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The content of the client's wheel, in a folder."""
    pytest.importorskip("hatchling", reason="builds the wheel")
    folder = tmp_path_factory.mktemp("client")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, f"--wheel-dir={folder}", str(ROOT / "client")], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(folder / "site")
    return folder / "site"


def test_a_robot_without_jax(installed, tmp_path):
    with served(*tiny_actor()) as running:
        done = subprocess.run(
            [sys.executable, "-c", ROBOT, str(installed), running.url],
            cwd=tmp_path,
            env={"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.stdout == "acted\n", done.stderr[-3000:]


def test_what_it_holds(installed):
    """The rooms of a client, and its own description; nothing is left behind where it was built."""
    tops = {path.relative_to(installed).parts[0] for path in installed.rglob("*")}
    assert tops == {"imagewam_jax", "imagewam_client-0.1.0.dist-info"}
    rooms = {path.name for path in (installed / "imagewam_jax").iterdir()} - {"__pycache__"}
    assert rooms == {"__init__.py", "errors.py", "client", "wire"}
    assert not (ROOT / "client" / "build").exists()
