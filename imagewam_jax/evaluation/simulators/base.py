"""The interface of a simulator, for everything that drives one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Float32, UInt8


class Observation(NamedTuple):
    """What a policy may see at one moment.

    images: uint8 RGB, one per camera.
    state: float32, the robot's own state. Never the pose of an object: a policy has to look.
    instruction: the task in natural language.
    """

    images_nhwc: UInt8[np.ndarray, "cameras h w 3"]
    state: Float32[np.ndarray, "p"]
    instruction: str


class ChunkOutcome(NamedTuple):
    """The result of executing one chunk of actions.

    observation: what can be seen after the last executed action.
    success: whether the task is done.
    steps: actions executed since the reset.
    done: the episode is over, by success or by the simulator's step limit.
    """

    observation: Observation
    success: bool
    steps: int
    done: bool


@dataclass(frozen=True)
class SimulatorSpec:
    """The facts about a simulator that do not change while it runs.

    instructions: task name -> instruction.
    cameras: names, in the order of `Observation.images_nhwc`.
    state_names, action_names: one name per dimension.
    action_low, action_high: bounds per dimension; actions beyond them are clipped.
    control_hz: actions per second of simulated time.
    max_steps: an episode that has not succeeded after so many actions has failed.
    """

    instructions: Mapping[str, str]
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_hz: float
    max_steps: int

    @property
    def action_dim(self) -> int:
        return len(self.action_names)


class Simulator(Protocol):
    """One environment. Built from keyword options; stepping does not render.

    Rendering costs tens of times more than a step of physics, and a policy that executes chunks of
    actions looks only when it plans again: `observe` renders, nothing else does but `reset`.
    """

    spec: SimulatorSpec

    def reset(self, task: str, seed: int) -> Observation:
        """Starts an episode. `(task, seed)` fixes the start state exactly."""

    def step(self, action: Float[np.ndarray, "a"]) -> bool:
        """Applies one action in real units; returns whether the task is done."""

    def observe(self) -> Observation:
        """Renders the present state."""
