"""The Cloud TPU script: the commands it prints, and what they do on workers that are folders."""

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.launch.scripts import run, stub

NAMED = ["--name=faucet", "--zone=us-east5-a", "--project=p"]
TRAIN = ["--", "train", "--config=configs/libero.py:4b", "--config.data.cameras=('a', 'b')"]
# Each worker of each node is a home folder; workers run the scripts sent to them at once.
GCLOUD = """
set -o pipefail
command=${@: -1:1}
for worker in 0 1; do
  home=$WORKERS/$5-$worker
  (cd "$home" && HOME=$home bash -c "${command#--command=}" 2>&1 | sed "s/^/$5-$worker: /") &
  pids+=($!)
done
for pid in "${pids[@]}"; do
  wait "$pid" || exit
done
"""
IMAGEWAM = """
trap 'sleep 0.3; echo saved; exit 75' TERM
echo "$@" >arguments
echo "$JAX_PLATFORMS $A" >variables
echo started
while true; do sleep 0.1; done
"""


@pytest.fixture
def commands(tmp_path):
    """Makes a dry run; returns its commands, split into words by a real shell."""
    programs = tmp_path / "echo"
    for name in ("gcloud", "git"):
        stub(programs, name, f"printf '%s\\x1f' {name} \"$@\"; printf '\\x1e'")

    def of(action: str, *options: str) -> list[list[str]]:
        done = run("queued_resource.sh", action, *NAMED, *options, "--dry-run")
        assert done.returncode == 0, done.stdout
        path = f"{programs}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path}
        out = subprocess.check_output(["bash", "-c", done.stdout], env=environment, text=True)
        return [command.split("\x1f")[:-1] for command in out.split("\x1e")[:-1]]

    return of


def ssh(command: list[str]) -> tuple[str, str]:
    """The node and the script that is sent to it."""
    assert command[:5] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh"]
    assert {"--zone=us-east5-a", "--project=p", "--worker=all"} <= set(command)
    return command[5], command[-1].removeprefix("--command=")


@pytest.mark.parametrize(
    ("topology", "kind", "runtime"),
    [
        ("v4:2x2x2", "v4", "tpu-ubuntu2204-base"),
        ("v5e:4x4", "v5litepod", "v2-alpha-tpuv5-lite"),
        ("v5p:2x2x4", "v5p", "v2-alpha-tpuv5"),
        ("v6e:4x4", "v6e", "v2-alpha-tpuv6e"),
    ],
)
def test_create(topology, kind, runtime, commands):
    (command,) = commands("create", f"--topology={topology}", "--spot")
    assert command[:6] == ["gcloud", "compute", "tpus", "queued-resources", "create", "faucet"]
    assert set(command[6:]) == {
        "--zone=us-east5-a",
        "--project=p",
        f"--type={kind}",
        f"--topology={topology.split(':')[1]}",
        f"--runtime-version={runtime}",
        "--node-id=faucet",
        "--spot",
    }


def test_create_several_slices(commands):
    (command,) = commands("create", "--topology=v5p:2x2x4", "--slices=2")
    assert {"--node-count=2", "--node-prefix=faucet"} <= set(command)
    assert "--node-id=faucet" not in command


def test_install(commands):
    archive, copy, command = commands("install")
    assert archive[:3] == ["git", "archive", "--format=tar.gz"] and archive[-1] == "HEAD"
    assert copy[4:7] == ["scp", archive[3].split("=")[1], "faucet:imagewam.tar.gz"]
    assert "--worker=all" in copy
    node, script = ssh(command)
    assert node == "faucet"
    assert '--constraint constraints.txt --editable ".[text,gcs]" "jax[tpu]"' in script
    assert "mount" not in script


def test_install_mounts_what_is_given(commands):
    _, script = ssh(commands("install", "--bucket=robots", "--nfs=10.0.0.2:/vol1")[-1])
    assert "gcsfuse --implicit-dirs" in script and " robots /bucket\n" in script
    assert "mount -t nfs 10.0.0.2:/vol1 /data" in script
    assert subprocess.run(["bash", "-n", "-c", script]).returncode == 0


def test_every_node_is_told(commands):
    told = [ssh(command)[0] for command in commands("stop", "--slices=3")]
    assert told == ["faucet-0", "faucet-1", "faucet-2"]


def test_delete(commands):
    (command,) = commands("delete")
    assert command[4:6] == ["delete", "faucet"] and {"--force", "--quiet"} <= set(command)


@pytest.fixture
def cluster(tmp_path):
    """Two nodes of two workers on which everything is installed."""
    programs, workers = tmp_path / "programs", tmp_path / "workers"
    stub(programs, "gcloud", GCLOUD)
    for home in (workers / f"faucet-{node}-{worker}" for node in (0, 1) for worker in (0, 1)):
        (home / "imagewam" / ".venv").mkdir(parents=True)
        stub(home / "imagewam" / ".venv" / "bin", "imagewam", IMAGEWAM)

    def action(name: str, *options: str):
        arguments = [*NAMED, "--slices=2", *options]
        return run("queued_resource.sh", name, *arguments, programs=programs, WORKERS=str(workers))

    yield workers, action
    action("stop")


def log_of(home: Path) -> str:
    log = home / "imagewam.log"
    return log.read_text() if log.is_file() else ""


def test_start_and_stop(cluster):
    """It starts detached on all workers of all nodes, with the arguments split as they were."""
    workers, action = cluster
    done = action("start", "--env=A=b c", *TRAIN)
    assert done.returncode == 0, done.stdout
    homes = sorted(workers.iterdir())
    assert len(homes) == 4
    end = time.monotonic() + 200
    while not all("started" in log_of(home) for home in homes):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    expected = [*TRAIN[1:], "--distributed", "--resume", "--config.mesh.slices=2"]
    for home in homes:
        assert (home / "imagewam" / "arguments").read_text().rstrip() == " ".join(expected)
        assert (home / "imagewam" / "variables").read_text() == "tpu,cpu b c\n"
    again = action("start", *TRAIN)
    assert again.returncode == 1 and "it runs already" in again.stdout
    done = action("stop")
    assert done.returncode == 0, done.stdout
    assert sorted(done.stdout.splitlines()) == [f"{home.name}: exit code 75" for home in homes]
    assert all("saved" in log_of(home) for home in homes)


def test_stop_where_nothing_runs(cluster):
    _, action = cluster
    assert action("stop").returncode == 0


def states(tmp_path, *names: str):
    """A gcloud that reports one state after the other."""
    (tmp_path / "states").write_text("".join(f"{name}\n" for name in names))
    stub(tmp_path, "gcloud", f"head -n 1 {tmp_path}/states; sed -i 1d {tmp_path}/states")
    stub(tmp_path, "sleep", ":")
    return run("queued_resource.sh", "wait", *NAMED, programs=tmp_path)


def test_wait(tmp_path):
    done = states(tmp_path, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    assert done.returncode == 0
    assert done.stdout == "faucet is WAITING_FOR_RESOURCES\nfaucet is PROVISIONING\n"


def test_wait_in_vain(tmp_path):
    done = states(tmp_path, "PROVISIONING", "FAILED")
    assert done.returncode == 2 and "faucet is FAILED" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which action?"),
        (["fly", *NAMED], "no such action: fly"),
        (["create", *NAMED], "--topology is that of a slice"),
        (["create", *NAMED[1:]], "--name is needed"),
        (["create", NAMED[0]], "--zone is needed"),
        (["start", *NAMED], "what to run goes behind --"),
        (["start", *NAMED, "--workers=2"], "no such option: --workers=2"),
    ],
)
def test_mistakes(arguments, message):
    done = run("queued_resource.sh", *arguments)
    assert done.returncode == 2 and message in done.stdout
