"""The XPK command, and the command that it passes on to pods."""

import shlex

import pytest

from tests.launch.scripts import run, stub

NEEDED = ["--cluster=c", "--workload=w", "--topology=v5p:2x2x4", "--image=i"]
TRAIN = ["--", "train", "--config=configs/libero.py:4b", "--config.data.cameras=('a', 'b')"]


def command(*options: str) -> list[str]:
    done = run("xpk.sh", *options, "--dry-run", *TRAIN)
    assert done.returncode == 0, done.stdout
    return shlex.split(done.stdout)


def test_the_command():
    found = command(*NEEDED, "--project=p", "--storage=robots")
    assert found[:3] == ["xpk", "workload", "create"]
    assert set(found[3:-1]) == {
        "--cluster=c",
        "--workload=w",
        "--project=p",
        "--storage=robots",
        "--tpu-type=v5p-2x2x4",
        "--num-slices=1",
        "--docker-image=i",
        "--max-restarts=50",
        "--restart-on-exit-codes=75",
        "--termination-grace-period-seconds=600",
        "--env=JAX_PLATFORMS=tpu,cpu",
    }


def test_what_runs_in_each_pod():
    """The command is a line for the pod's shell, which splits it into the same arguments."""
    (line,) = [x.removeprefix("--command=") for x in command(*NEEDED) if x.startswith("--command")]
    assert shlex.split(line) == ["exec", "imagewam", *TRAIN[1:], "--distributed", "--resume"]


def test_several_slices():
    found = command(*NEEDED, "--slices=2")
    assert "--num-slices=2" in found
    assert found[-1].endswith(" --distributed --resume --config.mesh.slices=2")


@pytest.mark.parametrize(
    ("topology", "tpu_type"),
    [("v4:2x2x2", "v4-2x2x2"), ("v5e:4x4", "v5litepod-4x4"), ("v6e:8x8", "v6e-8x8")],
)
def test_types(topology, tpu_type):
    assert f"--tpu-type={tpu_type}" in command(*NEEDED, f"--topology={topology}")


def test_it_runs_what_it_prints(tmp_path):
    stub(tmp_path, "xpk", 'printf "%s\\n" "$@"; exit 3')
    done = run("xpk.sh", *NEEDED, *TRAIN, programs=tmp_path)
    assert done.returncode == 3
    assert done.stdout.splitlines() == command(*NEEDED)[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (NEEDED, "what to run goes behind --"),
        ([*NEEDED, "--"], "what to run goes behind --"),
        ([*NEEDED[1:], *TRAIN], "--cluster is needed"),
        ([*NEEDED[:3], *TRAIN], "--image is needed"),
        ([*NEEDED, "--topology=v5p-8", *TRAIN], "--topology is that of a slice"),
        ([*NEEDED, "--project", "p", *TRAIN], "options are --option=value, not p"),
    ],
)
def test_mistakes(arguments, message):
    done = run("xpk.sh", *arguments)
    assert done.returncode == 2 and message in done.stdout
