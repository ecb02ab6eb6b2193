"""The interface of a simulator, for everything that drives one."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Float32, UInt8

from imagewam_jax.errors import ConfigError


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
    seen: what could be seen after each executed action but the last, if that was asked for.
    """

    observation: Observation
    success: bool
    steps: int
    done: bool
    seen: tuple[Observation, ...] = ()


@dataclass(frozen=True)
class SimulatorSpec:
    """The facts about a simulator that do not change while it runs.

    instructions: task name -> instruction.
    cameras: names, in the order of `Observation.images_nhwc`.
    state_names, action_names: one name per dimension.
    action_low, action_high: bounds per dimension; actions beyond them are clipped.
    control_hz: actions per second of simulated time.
    max_steps: task name -> an episode that has not succeeded after so many actions has failed.
    trials: task name -> how many start states a benchmark stores for it: its seeds are numbers of
        trials, from 0 on. None: every seed is a start state.
    execute_steps: how many actions of a chunk the benchmark's protocol executes before the next
        decision. None: it does not say.
    wordings: task name -> all that its episodes say, if that differs between them; `instructions`
        then has one of each. None: each task says one thing.
    """

    instructions: Mapping[str, str]
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_hz: float
    max_steps: Mapping[str, int]
    trials: Mapping[str, int] | None = None
    execute_steps: int | None = None
    wordings: Mapping[str, tuple[str, ...]] | None = None

    @property
    def all_instructions(self) -> list[str]:
        """Whatever an episode may say, sorted."""
        more = (self.wordings or {}).values()
        return sorted({*self.instructions.values(), *(text for texts in more for text in texts)})

    @property
    def other_instructions(self) -> dict[str, str]:
        """For each instruction, that of another task: of the next one, in their order. Empty if all
        tasks say the same."""
        first = sorted(set(self.instructions.values()))
        following = dict(zip(first, first[1:] + first[:1], strict=True))
        if len(first) < 2:
            return {}
        for task, texts in (self.wordings or {}).items():
            for text in texts:
                following.setdefault(text, following[self.instructions[task]])
        return following

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def suites(self) -> dict[str, tuple[str, ...]]:
        """Suite -> its tasks. A task is named "suite/name", or "name" where there are no suites;
        the suite is then ""."""
        found: dict[str, tuple[str, ...]] = {}
        for task in self.instructions:
            suite = task.rpartition("/")[0]
            found[suite] = (*found.get(suite, ()), task)
        return found


def check_options(simulator: str, *options: tuple[str, Collection[str], Collection[str]]) -> None:
    """ConfigError unless all values of each option (name, values, known values) are known."""
    for name, values, known in options:
        if unknown := [value for value in values if value not in known]:
            raise ConfigError(f"{simulator}: unknown {name} {unknown}; known: {', '.join(known)}")


def check_start(spec: SimulatorSpec, task: str, seed: int) -> None:
    """ValueError unless a task is one of the specification's, and the trial one of the task's."""
    if task not in spec.instructions:
        raise ValueError(f"unknown task {task!r}; known: {', '.join(spec.instructions)}")
    if not 0 <= seed < spec.trials[task]:
        raise ValueError(f"{task} has the trials 0 to {spec.trials[task] - 1}, found {seed}")


def finite_action(action: Float[np.ndarray, "..."], dims: int) -> Float32[np.ndarray, "a"]:
    """The action as float32. ValueError: it is not `dims` finite numbers."""
    action = np.asarray(action, np.float32)
    if action.shape != (dims,) or not np.isfinite(action).all():
        raise ValueError(f"an action must be {dims} finite numbers, found {action!r}")
    return action


class Simulator(Protocol):
    """One environment, built from keyword options.

    Rendering costs tens of times more than a step of physics, and a policy that executes chunks of
    actions looks only when it plans again: cameras are drawn at a reset, at a step with `look`, or
    when `observe` is called.

    Actions and states are in the standard convention of the datasets (a gripper's 1 is open), and
    images are as the datasets store them. What a benchmark has otherwise, a simulator converts.
    """

    spec: SimulatorSpec

    def reset(self, task: str, seed: int) -> Observation:
        """Starts an episode. `(task, seed)` fixes the start state exactly."""

    def step(self, action: Float[np.ndarray, "a"], *, look: bool) -> bool:
        """Applies one action in real units; returns whether the task is done.

        look: `observe` follows, unless the task is done before. Some benchmarks define images as
            taken within a step, and draw them only if they are told to.
        """

    def observe(self) -> Observation:
        """What can be seen now: the images of the last step with `look`, or new ones."""
