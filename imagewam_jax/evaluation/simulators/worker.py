"""A simulator process: `python -m imagewam_jax.evaluation.simulators.worker <file descriptor>`.

`pool.SimulatorPool` starts it. It reads requests from the connection, answers each, and ends when
the connection closes. Only simulators are imported here: software OpenGL and TensorFlow crash when
they share a process, and JAX would reserve the accelerator once per worker.
"""

import faulthandler
import signal
import sys
import traceback
from multiprocessing.connection import Connection

import numpy as np
from jaxtyping import Float

from imagewam_jax.errors import OpenGLUnavailable, UserError
from imagewam_jax.evaluation.simulators import make_simulator
from imagewam_jax.evaluation.simulators.base import ChunkOutcome, Observation, Simulator


class _Episode:
    """One simulator and the number of steps its episode has taken."""

    def __init__(self, simulator: Simulator):
        self.simulator = simulator
        self.steps = 0
        self.max_steps = 0

    def reset(self, start: tuple[str, int]) -> Observation:
        self.steps = 0
        observation = self.simulator.reset(*start)
        self.max_steps = self.simulator.spec.max_steps[start[0]]
        return observation

    def execute(self, chunk: Float[np.ndarray, "k a"]) -> ChunkOutcome:
        success = False
        executed = chunk[: self.max_steps - self.steps]
        for left, action in zip(reversed(range(len(executed))), executed, strict=True):
            success = self.simulator.step(action, look=left == 0)
            self.steps += 1
            if success:
                break
        return ChunkOutcome(
            observation=self.simulator.observe(),
            success=success,
            steps=self.steps,
            done=success or self.steps == self.max_steps,
        )


def _serve(connection: Connection) -> None:
    """Answers every request with ("ok", result) or, once and for all, ("error", traceback), ("no
    OpenGL", what to install) or ("refused", what the user can change)."""
    try:
        name, options, num_simulators = connection.recv()
        episodes = [_Episode(make_simulator(name, **options)) for _ in range(num_simulators)]
        connection.send(("ok", episodes[0].simulator.spec))
        while True:
            method, arguments = connection.recv()
            results = {i: getattr(episodes[i], method)(arguments[i]) for i in arguments}
            connection.send(("ok", results))
    except EOFError:
        pass  # The pool has closed its end.
    except OpenGLUnavailable as error:
        connection.send(("no OpenGL", str(error)))
    except UserError as error:
        connection.send(("refused", str(error)))
    except Exception:
        connection.send(("error", traceback.format_exc()))


if __name__ == "__main__":
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The pool decides when to stop.
    _serve(Connection(int(sys.argv[1])))
