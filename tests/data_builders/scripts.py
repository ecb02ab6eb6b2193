"""Imports and runs the scripts in data/ and tiny_networks/, which are no packages."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

DATA = Path(__file__).resolve().parents[2] / "data"
FOLDER = DATA / "metaworld_faucet"
LIBERO_FOLDER = DATA / "libero"
TINY_NETWORKS = DATA.parent / "tiny_networks"
SAMPLE = FOLDER / "sample" / "metaworld_faucet" / "1.0.0"


def load(name: str, folder: Path = FOLDER) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments, folder: Path = FOLDER) -> subprocess.CompletedProcess:
    command = [sys.executable, folder / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)
