"""The Slurm job, with programs of the test in the place of Slurm's."""

import re

import pytest

from tests.launch.scripts import LAUNCH, run, stub


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "programs"
    stub(folder, "srun", 'echo srun "$@"; exit "$SRUN_EXITS"')
    stub(folder, "scontrol", 'echo scontrol "$@"')
    return folder


def job(programs, exits: int):
    variables = {"SRUN_EXITS": str(exits), "SLURM_JOB_ID": "17", "SLURM_CPUS_PER_TASK": "6"}
    arguments = ["train", "--config=configs/libero.py:4b", "--workdir=runs/a b"]
    return run("slurm.sbatch", *arguments, programs=programs, **variables)


def test_the_step(programs):
    done = job(programs, 0)
    assert done.returncode == 0
    (line,) = done.stdout.splitlines()
    assert line == (
        "srun --kill-on-bad-exit=0 --wait=0 --cpus-per-task=6 --label .venv/bin/imagewam train "
        "--config=configs/libero.py:4b --workdir=runs/a b --distributed --resume"
    )


def test_a_job_that_saved_goes_back_into_the_queue(programs):
    done = job(programs, 75)
    assert done.returncode == 75 and done.stdout.splitlines()[-1] == "scontrol requeue 17"


@pytest.mark.parametrize("code", [1, 134, 137])
def test_a_job_that_failed_does_not(programs, code):
    done = job(programs, code)
    assert done.returncode == code and "scontrol" not in done.stdout


def test_options_of_the_job():
    """Under Slurm, JAX gives each process the GPU with the process's number on its node."""
    text = (LAUNCH / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", text, re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options
    assert options["signal"] == "TERM@300" and "requeue" in options
