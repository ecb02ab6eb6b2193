"""The command line in processes of their own, which share compiled functions."""

import os
import subprocess
import sys
from pathlib import Path

# Compiling is most of the time of a tiny run; a process that resumes it need not do it again.
_CACHE = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}
# Runs the command, then tells which of the large libraries it has imported.
_MAIN = """
import signal
import sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job lacks

from imagewam_jax.cli import main
status = main()
print("imported:", sorted({"jax", "tensorflow", "torch"} & set(sys.modules)))
sys.exit(status)
"""


def start(*arguments: str, cache: Path, new_session: bool = False) -> subprocess.Popen:
    """`imagewam ...`; `cache` is a folder for compiled functions. In a new session, its processes
    can be signalled together, as a terminal does."""
    return subprocess.Popen(
        [sys.executable, "-c", _MAIN, *arguments],
        env={**os.environ, **_CACHE, "JAX_COMPILATION_CACHE_DIR": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=new_session,
    )


def finish(process: subprocess.Popen, timeout_s: float = 300) -> str:
    """What a process printed; an AssertionError with its errors unless it succeeded."""
    out, err = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, err[-4000:]
    return out
