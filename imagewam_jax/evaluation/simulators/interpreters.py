"""The Python interpreters that run workers: this one, or one of another environment.

Another one is for simulators whose packages clash with ours. It needs NumPy and jaxtyping, and
finds of this package's environment nothing but the package itself, in the version that starts it.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from imagewam_jax.errors import SimulatorError

OLDEST = (3, 10)
_NEEDED = ("numpy", "jaxtyping")
_PROBE = f"""
import importlib.util, json, sys
missing = [name for name in {_NEEDED!r} if importlib.util.find_spec(name) is None]
print(json.dumps([list(sys.version_info[:2]), missing]))
"""
_TIMEOUT_S = 60


def own_interpreter() -> tuple[str, dict[str, str]]:
    """The path of this process's interpreter, and the variables with which one more finds what this
    one does."""
    paths = os.pathsep.join(path for path in sys.path if path)
    return sys.executable, {**os.environ, "PYTHONPATH": paths}


@contextlib.contextmanager
def foreign_interpreter(python: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The path of an interpreter, and the environment variables to start it with.

    python: its path, or a name that the shell finds.
    SimulatorError: it cannot be started, is too old, or lacks a package.
    """
    path = shutil.which(os.path.expanduser(python))
    if path is None:
        raise SimulatorError(
            f"python={python}: no such interpreter; give the path of bin/python of an environment"
        )
    with tempfile.TemporaryDirectory(prefix="imagewam-") as folder:
        # A folder that holds this package alone: beside it are others, which must not be found.
        package = Path(__file__).resolve().parents[2]
        (Path(folder) / package.name).symlink_to(package, target_is_directory=True)
        environment = {**os.environ, "PYTHONPATH": folder}
        environment.pop("PYTHONHOME", None)
        _check(path, environment)
        yield path, environment


def _check(path: str, environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(
            [path, "-c", _PROBE],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        version, missing = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        said = getattr(error, "strerror", None) or "it does not answer as Python does"
        raise SimulatorError(f"python={path}: cannot be used: {said}") from None
    if tuple(version) < OLDEST:
        raise SimulatorError(
            f"python={path}: Python {'.'.join(map(str, version))}, expected "
            f"{'.'.join(map(str, OLDEST))} or newer"
        )
    if missing:
        raise SimulatorError(
            f"python={path}: lacks {' and '.join(missing)}: {path} -m pip install "
            f"{' '.join(missing)}"
        )
