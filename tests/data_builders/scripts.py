"""Imports the scripts in data/, which is not a package."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[2] / "data" / "metaworld_faucet"
SAMPLE = FOLDER / "sample" / "metaworld_faucet" / "1.0.0"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, FOLDER / f"{name}.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)
