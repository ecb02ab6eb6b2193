"""Jobs of several processes with virtual devices, as tests run them to their end."""

import os
from collections.abc import Sequence
from pathlib import Path

from launch import local

ROOT = Path(__file__).resolve().parents[1]


def paths() -> dict[str, str]:
    """The variable by which the processes of a job import this checkout."""
    others = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(ROOT), *([others] if others else [])])}


def run_together(
    program: Sequence[str],
    *arguments: str,
    processes: int,
    devices: int,
    timeout: float = 1200.0,
    code: int = 0,
) -> list[str]:
    """The lines that a program writes in processes of so many devices, which must end with `code`.

    Of several, each is told by further arguments how to find the others (`local.commands_of`).
    """
    lines: list[str] = []
    with local.start(
        arguments,
        processes=processes,
        devices=devices,
        program=program,
        environment=paths(),
        output=lines.append,
    ) as job:
        assert job.wait(timeout=timeout) == code, "\n".join(lines[-60:])
    return lines
