"""Running the shell launchers with commands of the cluster replaced by programs of the test."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"


def stub(folder: Path, name: str, body: str) -> Path:
    """A program that a script finds before the real one, if there is one."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/usr/bin/env bash\n{body}\n")
    program.chmod(0o755)
    return program


def run(script: str, *arguments: str, programs: Path | None = None, **environment: str):
    """Returns the finished process; its output is one text."""
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
