"""Runs a job of several processes on this machine, each with virtual CPU devices.

    python launch/local.py --processes 2 --devices 4 -- train --config=... --workdir=...

It does what a pod does with N hosts of M chips, for tests and for anyone who wants to see a mesh or
a resume work before paying for a pod. All processes share the cores of this machine, so they are
never faster than one.

Exit code: 0 when all processes ended well; 75 when they were told to stop and saved a checkpoint
(run it again with --resume); else that of the process that failed first.
"""

import argparse
import collections
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

PREEMPTED = 75  # EX_TEMPFAIL: a checkpoint was saved, run again with --resume
IMAGEWAM = (sys.executable, "-c", "import sys; from imagewam_jax.cli import main; sys.exit(main())")
LAST_LINES = 20
_POLL_SECONDS = 0.05
_DEVICE_COUNT = re.compile(r"--xla_force_host_platform_device_count=\d+")


def write_line(line: str) -> None:
    sys.stdout.write(line + "\n")  # in one piece: several threads write
    sys.stdout.flush()


class LocalProcesses:
    """Processes that belong together: when one fails, the others are ended.

    Leaving it as a context manager kills all that still run.

    output: takes each line that a process writes, after the number of the process.
    grace: seconds from SIGTERM to SIGKILL for processes that are ended because another failed. They
        cannot save a checkpoint without that one, so there is nothing to wait for.
    """

    def __init__(
        self,
        commands: Sequence[Sequence[str]],
        *,
        environment: Mapping[str, str] | None = None,
        output: Callable[[str], None] = write_line,
        grace: float = 5.0,
    ):
        self._output, self._grace = output, grace
        self._sent: set[int] = set()
        self.processes: list[subprocess.Popen] = []
        try:
            for command in commands:
                # It has a session of its own, so that Ctrl-C reaches it once, through `send`, and
                # its own children end with it.
                process = subprocess.Popen(
                    command,
                    env=None if environment is None else dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
                self.processes.append(process)
        except BaseException:
            self.kill()
            for process in self.processes:
                process.stdout.close()
            raise
        self._tails = [collections.deque(maxlen=LAST_LINES) for _ in self.processes]
        self._readers = [
            threading.Thread(target=self._read, args=(number,), daemon=True)
            for number in range(len(self.processes))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, number: int) -> None:
        with self.processes[number].stdout as lines:
            for line in map(str.rstrip, lines):
                if line:  # progress bars write many empty ones
                    self._tails[number].append(line)
                    self._output(f"[{number}] {line}")

    def send(self, signal_number: int) -> None:
        """Sends a signal to every process that still runs, but not to their children."""
        self._sent.add(signal_number)
        for process in self.processes:
            process.send_signal(signal_number)

    def wait(self, timeout: float | None = None) -> int:
        """Waits until all have ended; returns the worst exit code.

        TimeoutError: some still run after `timeout` seconds, and are left running.
        """
        started = time.monotonic()
        while True:
            codes = [process.poll() for process in self.processes]
            failed = [n for n, code in enumerate(codes) if self._is_failure(code)]
            if failed:
                return self._end(failed[0])
            if None not in codes:
                self._join_readers()
                return max(map(exit_code, codes), default=0)
            if timeout is not None and time.monotonic() - started > timeout:
                running = [n for n, code in enumerate(codes) if code is None]
                raise TimeoutError(f"processes {running} still run after {timeout} seconds")
            time.sleep(_POLL_SECONDS)

    def _is_failure(self, code: int | None) -> bool:
        """Whether a process failed by itself; not if it ended by a signal it was sent from here."""
        return code not in (None, 0, PREEMPTED) and -code not in self._sent

    def _end(self, failed: int) -> int:
        """Ends all because one failed; returns the exit code of that one."""
        others = [n for n, process in enumerate(self.processes) if process.poll() is None]
        self.send(signal.SIGTERM)
        deadline = time.monotonic() + self._grace
        while time.monotonic() < deadline and any(p.poll() is None for p in self.processes):
            time.sleep(_POLL_SECONDS)
        self.kill()
        self._join_readers()
        code = self.processes[failed].returncode
        how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
        ended = f"; ended because of it: {', '.join(map(str, others))}" if others else ""
        for line in [
            f"process {failed} of {len(self.processes)} failed with {how}{ended}. "
            "The last lines that it wrote:",
            *(f"    {line}" for line in self._tails[failed]),
        ]:
            self._output(line)
        return exit_code(code)

    def kill(self) -> None:
        """Sends SIGKILL to all processes and their children."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _join_readers(self) -> None:
        # Bounded: a grandchild that outlives its parent can hold a pipe open.
        for reader in self._readers:
            reader.join(timeout=self._grace)

    def __enter__(self) -> "LocalProcesses":
        return self

    def __exit__(self, *error) -> None:
        self.kill()
        self._join_readers()


def exit_code(code: int) -> int:
    """The exit code as a shell reports it: 128 + n for signal n."""
    return code if code >= 0 else 128 - code


def start(
    arguments: Sequence[str],
    *,
    processes: int,
    devices: int,
    program: Sequence[str] = IMAGEWAM,
    environment: Mapping[str, str] | None = None,
    output: Callable[[str], None] = write_line,
) -> LocalProcesses:
    """Starts `imagewam ARGUMENTS` in several processes that find each other.

    devices: virtual CPU devices of each process.
    program: another one that takes its arguments, in place of `imagewam`.
    environment: variables to add to those of this process.
    """
    found = {**os.environ, **(environment or {})}
    return LocalProcesses(
        commands_of(arguments, processes, free_port(), program),
        environment=with_virtual_devices(found, devices),
        output=output,
    )


def commands_of(
    arguments: Sequence[str], processes: int, port: int, program: Sequence[str] = IMAGEWAM
) -> list[list[str]]:
    """The command of each process; a single process needs no coordinator."""
    if processes == 1:
        return [[*program, *arguments]]
    together = [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}"]
    return [[*program, *arguments, *together, f"--process={n}"] for n in range(processes)]


def with_virtual_devices(environment: Mapping[str, str], devices: int) -> dict[str, str]:
    """A copy of the environment in which JAX sees `devices` CPU devices and nothing else."""
    others = _DEVICE_COUNT.sub("", environment.get("XLA_FLAGS", "")).split()
    flags = [*others, f"--xla_force_host_platform_device_count={devices}"]
    return {**environment, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}


def free_port() -> int:
    """A port that is free now; another process may take it before it is used."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@contextlib.contextmanager
def forwarded_signals() -> Iterator[Callable[[LocalProcesses], None]]:
    """Forwards SIGTERM and SIGINT to the processes of a job, which decide to save and end.

    Yields a function that takes the job; what is signalled before goes to it then.
    """
    jobs: list[LocalProcesses] = []
    early: list[int] = []

    def forward(number: int, frame: object) -> None:
        if jobs:
            jobs[0].send(number)
        else:
            early.append(number)

    def forward_to(job: LocalProcesses) -> None:
        jobs.append(job)
        for number in early:
            job.send(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield forward_to
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [--processes N] [--devices M] -- VERB ...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=2, help="default: 2")
    parser.add_argument("--devices", type=int, default=4, help="of each process; default: 4")
    argv = list(sys.argv[1:] if argv is None else argv)
    own, given = (
        (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    )
    arguments = parser.parse_args(own)
    if not given:
        parser.error("what to run goes behind --, such as: -- train --config=... --workdir=...")
    if min(arguments.processes, arguments.devices) < 1:
        parser.error("--processes and --devices are at least 1")
    with (
        forwarded_signals() as forward_to,
        start(given, processes=arguments.processes, devices=arguments.devices) as job,
    ):
        forward_to(job)
        return job.wait()


if __name__ == "__main__":
    sys.exit(main())
