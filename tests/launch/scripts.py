"""Runs the shell launchers with the cluster's commands replaced by programs of the tests."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"


def stub(folder: Path, name: str, body: str) -> Path:
    """Make a program that a script finds instead of the real one."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/usr/bin/env bash\n{body}\n")
    program.chmod(0o755)
    return program


def run(script: str, *arguments: str, programs: Path | None = None, **environment: str):
    """Run a script; returns the finished process, with both outputs as one text."""
    path = os.environ["PATH"] if programs is None else f"{programs}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", LAUNCH / script, *arguments],
        env={**os.environ, "PATH": path, **environment},
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
