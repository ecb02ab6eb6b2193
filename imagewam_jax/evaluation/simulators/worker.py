"""A simulator process: `python -m imagewam_jax.evaluation.simulators.worker <file descriptor>`.

`pool.SimulatorPool` starts it. It reads requests from the connection, answers each, and ends when
the connection closes. Only simulators are imported here: software OpenGL and TensorFlow crash when
they share a process, and JAX would reserve the accelerator once per worker. It may be the Python
of another environment, with little more than NumPy (`interpreters.py`).
"""

import faulthandler
import signal
import sys
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from jaxtyping import Float

from imagewam_jax.errors import OpenGLUnavailable, SimulatorError, UserError
from imagewam_jax.evaluation.simulators import make_simulator
from imagewam_jax.evaluation.simulators.base import ChunkOutcome, Observation, Simulator
from imagewam_jax.evaluation.simulators.messages import pack, unpack


class _Episode:
    """One simulator and the number of steps its episode has taken.

    limit: the most steps of an episode, where the simulator's own limit is larger.
    """

    def __init__(self, simulator: Simulator, limit: int | None):
        self.simulator = simulator
        self.spec = simulator.spec
        if limit is not None:
            limits = {task: min(limit, own) for task, own in self.spec.max_steps.items()}
            self.spec = replace(self.spec, max_steps=limits)
        self.steps = 0
        self.max_steps = 0

    def reset(self, task: str, seed: int) -> Observation:
        self.steps = 0
        observation = self.simulator.reset(task, seed)
        self.max_steps = self.spec.max_steps[task]
        return observation

    def execute(self, chunk: Float[np.ndarray, "k a"], every_step: bool) -> ChunkOutcome:
        success, seen = False, []
        executed = chunk[: self.max_steps - self.steps]
        for left, action in zip(reversed(range(len(executed))), executed, strict=True):
            success = self.simulator.step(action, look=every_step or left == 0)
            self.steps += 1
            if success:
                break
            if every_step and left:
                seen.append(self.simulator.observe())
        return ChunkOutcome(
            observation=self.simulator.observe(),
            success=success,
            steps=self.steps,
            done=success or self.steps == self.max_steps,
            seen=tuple(seen),
        )


def _serve(connection: Connection) -> None:
    """Answers every request with "ok" and the result or, once and for all, with "error" and a
    traceback, "no OpenGL" and what to install, or "refused" and what the user can change."""

    def answer(status: str, content: Any) -> None:
        connection.send_bytes(pack({"status": status, "answer": content}))

    try:
        start = unpack(connection.recv_bytes())
        try:
            episodes = [
                _Episode(make_simulator(start["simulator"], **start["options"]), start["max_steps"])
                for _ in range(start["count"])
            ]
        except ModuleNotFoundError as error:
            raise SimulatorError(f"{sys.executable}: {error}") from error
        except EOFError as error:  # of `input`; below it would mean that the pool is gone
            raise SimulatorError(
                f"{sys.executable}: the simulator asks something when it is first imported; import "
                "it once by hand"
            ) from error
        answer("ok", episodes[0].spec)
        while True:
            request = unpack(connection.recv_bytes())
            answer(
                "ok",
                [
                    (place, getattr(episodes[place], request["call"])(*arguments))
                    for place, *arguments in request["arguments"]
                ],
            )
    except EOFError:
        pass  # The pool has closed its end.
    except OpenGLUnavailable as error:
        answer("no OpenGL", str(error))
    except UserError as error:
        answer("refused", str(error))
    except Exception:
        answer("error", traceback.format_exc())


if __name__ == "__main__":
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The pool decides when to stop.
    _serve(Connection(int(sys.argv[1])))
