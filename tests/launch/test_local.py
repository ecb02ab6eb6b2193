"""The local launcher, with children that run a line of Python."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch import local
from launch.local import LocalProcesses
from tests.launch.scripts import ROOT

# Reports that it runs, then waits for a signal; its signal handler comes before this.
WAIT = "import time; print('ready', flush=True); time.sleep(1000)"
SAVE = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); " + WAIT
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAIT


def job(*programs: str, lines: list[str] | None = None, **options) -> LocalProcesses:
    commands = [[sys.executable, "-c", program] for program in programs]
    return LocalProcesses(commands, output=[].append if lines is None else lines.append, **options)


def until(condition, seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_output_comes_behind_the_number_of_its_process():
    lines = []
    program = "import sys; print('a\\r\\rb\\n'); print('c', file=sys.stderr)"
    with job(program, "print('d')", lines=lines) as running:
        assert running.wait(200) == 0
    assert sorted(lines) == ["[0] a", "[0] b", "[0] c", "[1] d"]


def test_a_failure_ends_the_others_and_is_explained():
    lines, started = [], time.monotonic()
    with job(WAIT, "print('no such file'); raise SystemExit(3)", lines=lines) as running:
        assert running.wait(200) == 3
    assert time.monotonic() - started < 500  # WAIT takes 1000
    assert all(process.poll() is not None for process in running.processes)
    message = lines.index(
        "process 1 of 2 failed with exit code 3; ended because of it: 0. "
        "The last lines that it wrote:"
    )
    assert lines[message + 1] == "    no such file"


def test_of_much_output_the_last_lines_are_repeated():
    lines = []
    with job("for n in range(100): print(n)\nraise SystemExit(1)", lines=lines) as running:
        running.wait(200)
    assert [line for line in lines if line.startswith("    ")] == [
        f"    {n}" for n in range(100 - local.LAST_LINES, 100)
    ]


def test_what_does_not_end_is_killed():
    lines = []
    fails = "import time; time.sleep(1); raise SystemExit(4)"
    with job(DEAF, fails, lines=lines, grace=0.3) as running:
        assert running.wait(200) == 4
    assert running.processes[0].returncode == -signal.SIGKILL


def test_a_process_that_was_killed_is_a_failure():
    lines = []
    with job(WAIT, WAIT, lines=lines) as running:
        until(lambda: len(lines) == 2)
        running.processes[0].kill()
        assert running.wait(200) == 128 + signal.SIGKILL
    assert any("process 0 of 2 failed with signal SIGKILL" in line for line in lines)


def test_a_signal_reaches_all():
    lines = []
    with job(SAVE, SAVE, lines=lines) as running:
        until(lambda: len(lines) == 2)
        running.send(signal.SIGTERM)
        assert running.wait(200) == local.PREEMPTED
    assert len(lines) == 2  # nothing failed


def test_to_end_by_a_signal_that_was_sent_is_no_failure():
    """The other process has time to save a checkpoint."""
    lines = []
    slow = SAVE.replace("sys.exit(75)", "(time.sleep(0.5), print('saved'), sys.exit(75))")
    with job("import time; " + WAIT, "import time; " + slow, lines=lines) as running:
        until(lambda: len(lines) == 2)
        running.send(signal.SIGTERM)
        assert running.wait(200) == 128 + signal.SIGTERM
    assert "[1] saved" in lines


@pytest.mark.parametrize(("codes", "worst"), [((0, 0), 0), ((0, 75), 75), ((75, 75), 75)])
def test_exit_codes_that_are_no_failure(codes, worst):
    lines = []
    with job(*(f"raise SystemExit({code})" for code in codes), lines=lines) as running:
        assert running.wait(200) == worst
    assert not lines


def test_a_wait_that_is_too_short_leaves_all_running():
    with job(WAIT) as running:
        with pytest.raises(TimeoutError, match=r"processes \[0\] still run"):
            running.wait(0.2)
        assert running.processes[0].poll() is None
    assert running.processes[0].poll() is not None


def test_leaving_the_context_ends_what_a_process_started():
    lines = []
    starts = (
        "import subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)']); "
        "print(child.pid, flush=True); child.wait()"
    )
    with job(starts, lines=lines):
        until(lambda: lines)
    until(lambda: gone(int(lines[0].split()[1])))


def test_a_command_that_is_not_there_leaves_nothing_running():
    with pytest.raises(FileNotFoundError):
        LocalProcesses([[sys.executable, "-c", WAIT], ["/no/such/command"]])


def test_commands_find_each_other():
    first, second = local.commands_of(["train", "--workdir=w"], 2, 1234)
    together = ["train", "--workdir=w", "--coordinator=127.0.0.1:1234", "--processes=2"]
    assert first == [*local.IMAGEWAM, *together, "--process=0"]
    assert second == [*local.IMAGEWAM, *together, "--process=1"]
    assert local.commands_of(["train"], 1, 1234) == [[*local.IMAGEWAM, "train"]]


def test_devices_replace_those_that_were_set():
    flags = "--xla_a=1 --xla_force_host_platform_device_count=8 --xla_b"
    found = local.with_virtual_devices({"XLA_FLAGS": flags, "HOME": "h"}, 4)
    assert found["XLA_FLAGS"] == "--xla_a=1 --xla_b --xla_force_host_platform_device_count=4"
    assert found["JAX_PLATFORMS"] == "cpu" and found["HOME"] == "h"


def test_processes_share_their_devices():
    """JAX sees the devices of all processes, and a sum goes over them."""
    program = (
        "import sys, jax, jax.numpy as jnp; from jax.sharding import *; "
        "jax.distributed.initialize('127.0.0.1:{port}', 2, {number}); "
        "mesh = Mesh(jax.devices(), 'd'); here = NamedSharding(mesh, PartitionSpec('d')); "
        "ones = jax.make_array_from_callback((4,), here, lambda i: jnp.ones((1,))); "
        "print(jax.local_device_count(), jax.device_count(), float(jax.jit(jnp.sum)(ones)))"
    )
    port, lines = local.free_port(), []
    commands = [[sys.executable, "-c", program.format(port=port, number=n)] for n in (0, 1)]
    environment = local.with_virtual_devices(os.environ, 2)
    with LocalProcesses(commands, environment=environment, output=lines.append) as running:
        assert running.wait(60) == 0, lines
    assert {"[0] 2 4 4.0", "[1] 2 4 4.0"} <= set(lines)


def command(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, ROOT / "launch" / "local.py", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        **options,
    )


def test_the_command_returns_what_the_verb_returns():
    process = command("--processes", "1", "--", "train", "--config=no_such.py", "--workdir=w")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "[0] imagewam train: no_such.py" in out and "process 0 of 1 failed" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [([], "goes behind --"), (["--processes", "0", "--", "train"], "at least 1")],
)
def test_commands_that_are_none(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        local.main(arguments)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_signals_of_the_launcher_are_forwarded(tmp_path):
    """The launcher's exit code is the one that the processes end with."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from launch import local\n"
        f"commands = [[sys.executable, '-c', {SAVE!r}]] * 2\n"
        "with local.forwarded_signals() as forward_to, local.LocalProcesses(commands) as job:\n"
        "    forward_to(job)\n"
        "    sys.exit(job.wait())\n"
    )
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert {process.stdout.readline(), process.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=200)
    assert process.returncode == local.PREEMPTED
