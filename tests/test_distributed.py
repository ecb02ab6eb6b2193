"""Processes that find each other, wait for each other, and miss each other."""

import subprocess
import sys
import textwrap

import pytest

from imagewam_jax import distributed
from imagewam_jax.errors import ConfigError
from launch.local import free_port
from tests.training.tiny import ROOT


def together(script: str, processes: int = 2) -> list[subprocess.CompletedProcess]:
    """Runs a script in several processes, in which `process` is the number of each."""
    start = f"""
        import sys, time
        import jax
        from imagewam_jax import distributed
        from imagewam_jax.errors import HostsError
        process = int(sys.argv[1])
        distributed.initialize(
            coordinator="127.0.0.1:{free_port()}", processes={processes}, process=process
        )
        jax.devices()  # which needs all of them
    """
    text = textwrap.dedent(start) + textwrap.dedent(script)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", text, str(number)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    outputs = [process.communicate(timeout=300) for process in running]
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *output)
        for process, output in zip(running, outputs, strict=True)
    ]


def test_a_process_that_does_not_come_is_named():
    first, _ = together(
        """
        if process == 0:
            try:
                distributed.wait_for_all("the test", timeout_s=2)
            except HostsError as error:
                print(str(error).splitlines()[0])
        else:
            time.sleep(5)
        """
    )
    assert first.returncode == 0, first.stderr
    assert first.stdout.splitlines()[-1].startswith(
        "process 1 of 2 did not come to 'the test' within 2 s"
    )


def test_the_first_process_works_alone_and_gives_away_what_it_made(tmp_path):
    found = together(
        f"""
        from pathlib import Path
        import numpy as np
        path = Path({str(tmp_path)!r}) / "made"
        with distributed.first_alone("making"):
            assert path.exists() == (process == 1)
            if process == 0:
                time.sleep(0.5)
                path.touch()
        tree = distributed.from_first({{"x": np.arange(3) + 10 * process}})
        agreed = distributed.all_agree(True), distributed.all_agree(process == 0)
        print(np.asarray(tree["x"]).tolist(), agreed, distributed.is_first())
        """
    )
    for number, process in enumerate(found):
        assert process.returncode == 0, process.stderr
        assert process.stdout.splitlines()[-1] == f"[0, 1, 2] (True, False) {number == 0}"


@pytest.mark.parametrize(
    "given",
    [
        {"coordinator": "127.0.0.1:1"},
        {"processes": 2, "process": 0},
        {"automatic": True, "process": 0},
        {"automatic": True, "coordinator": "a:1", "processes": 2, "process": 0},
    ],
)
def test_half_of_what_is_needed(given):
    with pytest.raises(ConfigError, match="--coordinator, --processes and --process together"):
        distributed.initialize(**given)


def test_one_process_alone_waits_for_nobody():
    distributed.initialize()
    distributed.wait_for_all("nothing")
    with distributed.first_alone("nothing"):
        pass
    assert distributed.is_first() and distributed.all_agree(True)
    assert not distributed.all_agree(False)
