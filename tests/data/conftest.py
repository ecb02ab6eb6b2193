"""Small RLDS sets that TFDS writes once per test run, and what TFDS reads of them."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import open_index
from tests.shared_folder import shared


class ToySet(NamedTuple):
    """dataset_dir is a TFDS version folder with its index in the default place."""

    dataset_dir: Path
    truth: dict
    examples: dict


class LayoutSet(NamedTuple):
    """A set of rlds_layouts.py without an index, and {split: [(steps, episode)]} read by TFDS."""

    dataset_dir: Path
    truth: dict


@pytest.fixture(scope="session")
def rlds_folder() -> Path:
    """The folder that write_rlds.py writes, and an index of `toy_arm`."""
    pytest.importorskip("tensorflow_datasets", reason="writes RLDS with TFDS")

    def make(folder: Path) -> None:
        write_rlds(folder)
        build_index(folder / "toy_arm" / "1.0.0", progress=False)

    return shared("rlds", make)


def write_rlds(folder: Path) -> None:
    """Run write_rlds.py in a process of its own: it imports TensorFlow."""
    script = Path(__file__).with_name("write_rlds.py")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, script, folder],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="session")
def toy(rlds_folder) -> ToySet:
    truth, examples = (
        pickle.loads((rlds_folder / f"{name}.pickle").read_bytes())
        for name in ("truth", "examples")
    )
    return ToySet(rlds_folder / "toy_arm" / "1.0.0", truth, examples)


@pytest.fixture(scope="session")
def layouts(rlds_folder) -> dict[str, LayoutSet]:
    """The sets by name: "bridge", "fractal", "libero", "odd"."""
    truth = pickle.loads((rlds_folder / "layouts.pickle").read_bytes())
    return {name: LayoutSet(rlds_folder / name / "1.0.0", truth[name]) for name in truth}


@pytest.fixture(scope="session")
def cameras(rlds_folder) -> dict[str, LayoutSet]:
    """The sets "cameras" and "cameras_array", with {split: [[step]]} of decoded values."""
    truth = pickle.loads((rlds_folder / "cameras.pickle").read_bytes())
    return {name: LayoutSet(rlds_folder / name / "1.0.0", truth[name]) for name in truth}


@pytest.fixture(scope="session")
def toy_index(toy):
    return open_index(toy.dataset_dir)


@pytest.fixture
def toy_copy(toy, tmp_path) -> Path:
    """A copy of the set and its index that a test may damage, without what other tests cached."""
    caches = shutil.ignore_patterns("standardized", "statistics")
    return Path(shutil.copytree(toy.dataset_dir, tmp_path / "1.0.0", ignore=caches))


def train_shard(dataset_dir: Path, number: int) -> Path:
    return dataset_dir / f"toy_arm-train.tfrecord-{number:05d}-of-00003"


def flip_byte(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x01
    path.write_bytes(data)
