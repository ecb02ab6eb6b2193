"""Many simulators in several processes, driven as one batch."""

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from typing import Any

import numpy as np
from jaxtyping import Float

from imagewam_jax.errors import ConfigError, OpenGLUnavailable, SimulatorError
from imagewam_jax.evaluation.simulators.base import ChunkOutcome, Observation, SimulatorSpec
from imagewam_jax.evaluation.simulators.interpreters import foreign_interpreter, own_interpreter
from imagewam_jax.evaluation.simulators.messages import (
    observation_from,
    outcome_from,
    pack,
    spec_from,
    unpack,
)

_WORKER_MODULE = "imagewam_jax.evaluation.simulators.worker"
_CLOSE_TIMEOUT_S = 5
_STDERR_CHARS = 4000


class SimulatorPool:
    """`num_simulators` equal simulators spread over `num_workers` processes.

    Simulators are numbered from 0; every call names the ones that it runs, in parallel.
    After an error the pool is closed.

    The processes are started as programs of their own, neither forked (OpenGL does not survive a
    fork) nor spawned by `multiprocessing` (which imports the caller's main module, and with it
    whatever that imports, into each).

    name, options: what `make_simulator` takes. Two options are the pool's: `python`, the
        interpreter of another environment, which runs the workers (`interpreters.py`), and
        `max_steps`, after which episodes end that the simulator would let go on.
    num_simulators: environments in all.
    num_workers: processes; at most one per simulator is started.
    timeout_s: the longest one call may take, starting included.
    ConfigError: an option cannot be sent to another process, or `max_steps` is not a number of
        steps.
    OpenGLUnavailable: the simulator renders, and this machine cannot.
    SimulatorError: a simulator could not be built; also raised by the methods.
    """

    spec: SimulatorSpec
    tasks: dict[int, str]  # simulator -> the task of its latest episode

    def __init__(
        self,
        name: str,
        *,
        num_simulators: int,
        num_workers: int,
        options: Mapping[str, Any] | None = None,
        timeout_s: float = 120.0,
    ):
        if num_simulators < 1 or num_workers < 1:
            raise ValueError(
                f"a pool needs simulators and workers, found {num_simulators} and {num_workers}"
            )
        num_workers = min(num_workers, num_simulators)
        self.num_simulators = num_simulators
        self._workers: list[_Worker] = []
        self._resources = contextlib.ExitStack()
        options = dict(options or {})
        try:
            pack(options)
        except TypeError as error:
            raise ConfigError(f"options of the simulator {name!r}: {error}") from error
        python = options.pop("python", None)
        max_steps = options.pop("max_steps", None)
        if max_steps is not None and (type(max_steps) is not int or max_steps < 1):
            raise ConfigError(
                f"options of the simulator {name!r}: max_steps is {max_steps!r}, expected a whole "
                "number from 1"
            )
        try:
            if python is None:
                started_by = own_interpreter()
            else:
                started_by = self._resources.enter_context(foreign_interpreter(str(python)))
            for index in range(num_workers):
                worker = _Worker(f"{name} worker {index}", *started_by, timeout_s)
                self._workers.append(worker)
                share = len(range(index, num_simulators, num_workers))
                worker.send(
                    {
                        "simulator": name,
                        "options": options,
                        "max_steps": max_steps,
                        "count": share,
                    }
                )
            specs = [spec_from(worker.receive()) for worker in self._workers]
        except BaseException:
            self._end(patience_s=0)
            raise
        self.spec = specs[0]
        self.tasks = {}

    def reset(self, starts: Mapping[int, tuple[str, int]]) -> dict[int, Observation]:
        """Starts an episode `(task, seed)` in each named simulator."""
        observations = self._call("reset", starts, observation_from)
        self.tasks |= {i: task for i, (task, _) in starts.items()}
        return observations

    def execute(
        self, chunks: Mapping[int, Float[np.ndarray, "_ a"]], *, every_step: bool = False
    ) -> dict[int, ChunkOutcome]:
        """Executes a chunk of actions in each named simulator, and renders once at its end.

        A simulator stops within its chunk when the task is done or the step limit is reached.
        every_step: renders after every action (`ChunkOutcome.seen`); what happens is the same.
        """
        arguments = {i: (np.asarray(chunk), every_step) for i, chunk in chunks.items()}
        return self._call("execute", arguments, outcome_from)

    def close(self) -> None:
        """Ends the processes; closing twice does nothing."""
        self._end(_CLOSE_TIMEOUT_S)

    def __enter__(self) -> "SimulatorPool":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _call(
        self, method: str, arguments: Mapping[int, tuple], read: Callable[[Any], Any]
    ) -> dict[int, Any]:
        if not self._workers:
            raise SimulatorError("the pool is closed")
        unknown = [i for i in arguments if not 0 <= i < self.num_simulators]
        if unknown:
            raise ValueError(f"no simulators {unknown}: the pool has {self.num_simulators}")
        shares: dict[int, list[tuple]] = {}
        for i, argument in arguments.items():
            place, worker_index = divmod(i, len(self._workers))
            shares.setdefault(worker_index, []).append((place, *argument))
        results = {}
        try:
            for worker_index, share in shares.items():
                self._workers[worker_index].send({"call": method, "arguments": share})
            for worker_index in shares:
                for place, answer in self._workers[worker_index].receive():
                    results[place * len(self._workers) + worker_index] = read(answer)
        except BaseException:
            self._end(patience_s=0)
            raise
        return results

    def _end(self, patience_s: float) -> None:
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.end(patience_s)
        self._workers = []
        self._resources.close()


class _Worker:
    """One process and the connection to it."""

    def __init__(self, name: str, python: str, environment: dict[str, str], timeout_s: float):
        self._name = name
        self._timeout_s = timeout_s
        self._connection, theirs = Pipe()
        # Kept apart from our own, so that the output of a crash can be quoted. `end` closes it.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [python, "-m", _WORKER_MODULE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=self._stderr,
            env=environment,
        )
        theirs.close()

    def send(self, message: Any) -> None:
        try:
            self._connection.send_bytes(pack(message))
        except OSError:
            raise self._death() from None

    def receive(self) -> Any:
        try:
            if not self._connection.poll(self._timeout_s):
                raise SimulatorError(
                    f"{self._name} did not answer within {self._timeout_s:g} s{self._quote()}"
                )
            message = self._connection.recv_bytes()
        except (EOFError, OSError):
            raise self._death() from None
        content = unpack(message)
        status, answer = content["status"], content["answer"]
        if status == "no OpenGL":
            raise OpenGLUnavailable(answer)
        if status == "refused":
            raise SimulatorError(f"{self._name}: {answer}")
        if status == "error":
            raise SimulatorError(f"{self._name} failed:\n{answer}")
        return answer

    def hang_up(self) -> None:
        """Closes our end of the connection, upon which an idle process ends itself."""
        self._connection.close()

    def end(self, patience_s: float) -> None:
        """Waits for the process to end, and kills it if it does not."""
        try:
            self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()

    def _death(self) -> SimulatorError:
        """Describes the end of a process that has closed its side of the connection."""
        try:
            status = f"exit status {self._process.wait(_CLOSE_TIMEOUT_S)}"
        except subprocess.TimeoutExpired:
            status = "connection lost"
        return SimulatorError(f"{self._name} died ({status}){self._quote()}")

    def _quote(self) -> str:
        self._stderr.seek(0)
        text = self._stderr.read().decode(errors="replace").strip()[-_STDERR_CHARS:]
        return f"; it wrote:\n{text}" if text else "; it wrote nothing"
