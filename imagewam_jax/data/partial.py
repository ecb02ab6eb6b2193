"""Files and folders that appear when they are complete."""

import os
import socket
from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where `path` is written before it gets its name: beside it, and where no other process
    writes, of this host or of another. In a container every process may have the number 1."""
    return path.with_name(f".{path.name}.partial-{socket.gethostname()}-{os.getpid()}")
