"""A simulator without physics, for tests of what drives simulators."""

import os
import sys
import time

import numpy as np

from imagewam_jax.evaluation.simulators.base import Observation, SimulatorSpec

NAME = f"{__name__}:FakeSimulator"


class FakeSimulator:
    """A point on a line: it starts at the seed, actions move it, and 10 and beyond is success.

    Observations show the position in every pixel and in the state. The tasks "raise", "exit" and
    "hang" do so at their first step. The instruction of "modules" names the large libraries that
    its process has imported, that of "looks" which steps were told to look, that of "loaded" the
    tasks that this simulator has been given one after the other, and that of "places" from where
    its process has Python and what it imports.
    """

    spec = SimulatorSpec(
        instructions={"forward": "go forward", "backward": "go backward"},
        cameras=("front", "back"),
        state_names=("position",),
        action_names=("move",),
        action_low=(-1.0,),
        action_high=(1.0,),
        control_hz=1.0,
        max_steps=dict.fromkeys(
            (
                *("forward", "backward", "raise", "exit", "hang"),
                *("modules", "looks", "loaded", "places"),
            ),
            12,
        ),
    )

    def __init__(self, *, side: int = 2, question: str = ""):
        if question:
            input(question)
        self._side = side
        self._loaded: list[str] = []

    def reset(self, task: str, seed: int) -> Observation:
        self._task, self._position = task, float(seed)
        self._looks: list[bool] = []
        if self._loaded[-1:] != [task]:
            self._loaded.append(task)
        return self.observe()

    def step(self, action: np.ndarray, *, look: bool) -> bool:
        self._looks.append(look)
        if self._task == "raise":
            raise RuntimeError("the fake simulator failed on purpose")
        if self._task == "exit":
            print("the fake simulator's last words", file=sys.stderr, flush=True)
            os._exit(3)
        if self._task == "hang":
            time.sleep(1000)
        self._position += float(action[0])
        return self._position >= 10

    def observe(self) -> Observation:
        told = {
            "modules": f"imported: {sorted({'jax', 'tensorflow', 'torch'} & set(sys.modules))}",
            "looks": f"looked: {self._looks}",
            "loaded": " ".join(self._loaded),
            "places": "\n".join([sys.prefix, np.__file__, *sys.path]),
        }
        return Observation(
            images_nhwc=np.full((2, self._side, self._side, 3), max(self._position, 0), np.uint8),
            state=np.array([self._position], np.float32),
            instruction={**self.spec.instructions, **told}.get(self._task, self._task),
        )
