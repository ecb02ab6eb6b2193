"""A simulator in which every action changes what the camera sees, so that no difference is lost."""

import numpy as np

from imagewam_jax.evaluation.simulators.base import Observation, SimulatorSpec
from tests.training.tiny import INSTRUCTIONS

NAME = f"{__name__}:MovingCamera"


class MovingCamera:
    """A camera over a plain, moved by the actions; success is to have gone far enough."""

    spec = SimulatorSpec(
        instructions={"close": INSTRUCTIONS[0], "open": INSTRUCTIONS[1]},
        cameras=("primary",),
        state_names=("x", "y", "z", "grip"),
        action_names=("x", "y", "z", "grip"),
        action_low=(-1.0,) * 4,
        action_high=(1.0,) * 4,
        control_hz=80.0,
        max_steps={"close": 24, "open": 24},
    )

    def reset(self, task: str, seed: int) -> Observation:
        self._task = task
        self._place = np.random.default_rng(seed).uniform(-0.2, 0.2, 4).astype(np.float32)
        self._way = 0.0
        return self.observe()

    def step(self, action: np.ndarray, *, look: bool) -> bool:
        move = 0.1 * np.asarray(action, np.float32)
        self._place = np.clip(self._place + move, -0.5, 0.8)
        self._way += float(np.abs(move[:3]).sum())
        return self._way > 1.5

    def observe(self) -> Observation:
        rows, columns = np.mgrid[:64, :64] / 8.0
        x, y, z, grip = self._place * 10
        waves = [np.sin(rows + x) + np.cos(columns + y), np.sin(rows * z), np.cos(columns + grip)]
        image = (127.5 + 60 * np.stack(waves, axis=-1)).clip(0, 255).astype(np.uint8)
        return Observation(image[None], self._place.copy(), self.spec.instructions[self._task])
