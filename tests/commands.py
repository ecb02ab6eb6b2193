"""Commands that users type, run to their end in processes of their own."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# The flags of the other tests save time of compiling, and take it when running.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}


def run(command: Sequence[Any], folder: Path, **environment: str) -> str:
    """What a command prints in a folder, with more variables; it must succeed within 50 minutes."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=3000,
    )
    printed = f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    assert done.returncode == 0, f"{command}\n{printed}"
    return done.stdout
