"""Closed-loop rollouts: a policy acts in simulators, and success is counted.

Every policy here is a function from a batch of observations to a batch of action chunks. The
batch always has one row per simulator of the pool, so a jitted policy compiles once; rows without
an episode repeat another row, and their actions are discarded. As soon as an episode ends, its
simulator starts the next one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from tqdm import tqdm

from imagewam_jax.evaluation.journal import Ended
from imagewam_jax.evaluation.simulators.base import Observation, SimulatorSpec
from imagewam_jax.evaluation.simulators.pool import SimulatorPool


class PolicyInput(NamedTuple):
    """What a policy is given to act on, one row per simulator.

    episode: which episode of the rollout a row belongs to.
    step: actions executed in that episode so far.
    Randomness derived from these two does not depend on how episodes were batched.
    """

    images_bnhwc: UInt8[np.ndarray, "b cameras h w 3"]
    state_bp: Float[np.ndarray, "b p"]
    instructions: list[str]
    episode_b: Int[np.ndarray, "b"]
    step_b: Int[np.ndarray, "b"]


Policy = Callable[[PolicyInput], Float[np.ndarray, "b horizon a"]]


@dataclass(frozen=True)
class RolloutResult:
    """How each episode of a rollout ended.

    episodes: (task, seed) as given.
    success: whether the task was done within the simulator's step limit.
    steps: actions executed.
    seam: of a policy that is late, how its chunks met: the means of `delays.Seam`.
    """

    episodes: tuple[tuple[str, int], ...]
    success: Bool[np.ndarray, "n"]
    steps: Int[np.ndarray, "n"]
    seam: Mapping[str, float | None] | None = None

    @property
    def steps_to_success(self) -> float | None:
        """The mean of the episodes that succeeded; None where none did."""
        return float(self.steps[self.success].mean()) if self.success.any() else None


class Observer(Protocol):
    """Watches the episodes of a rollout, which are told by their positions in it.

    every_step: it is to see the robot after every action, and not only when the policy plans. That
        takes longer, since simulators draw more, and changes nothing else.
    """

    every_step: bool

    def began(self, episode: int, start: tuple[str, int], observation: Observation) -> None:
        """An episode starts, from a start (task, seed)."""

    def acted(
        self, episode: int, actions: Float[np.ndarray, "k a"], seen: Sequence[Observation]
    ) -> None:
        """Actions were executed. `seen` is from after each of them if any observer is to see every
        step, else from after the last."""

    def ended(self, episode: int, ended: Ended) -> None:
        """An episode is over."""


def rollout(
    pool: SimulatorPool,
    policy: Policy,
    episodes: Sequence[tuple[str, int]],
    *,
    execute_steps: int,
    observers: Sequence[Observer] = (),
    ended: Mapping[int, Ended] | None = None,
    on_end: Callable[[tuple[str, int], Ended], None] | None = None,
    description: str = "rollout",
) -> RolloutResult:
    """Plays each episode, a (task, seed), to success or to the step limit.

    The policy's batch size is the number of simulators in the pool.

    execute_steps: actions executed of each chunk before the policy is asked again.
    observers: are told of every episode that is played.
    ended: positions in `episodes` that were played before, and how they ended.
    on_end: is told of every episode that ends, (task, seed), and how, after the observers.
    description: shown by the progress bar.
    ValueError: the policy's actions have the wrong shape or are not finite. SimulatorError: a
        simulator failed.
    """
    success = np.zeros(len(episodes), bool)
    steps = np.zeros(len(episodes), np.int64)
    ended = ended or {}
    for episode, before in ended.items():
        success[episode], steps[episode] = before
    waiting = [episode for episode in range(len(episodes)) if episode not in ended]
    every_step = any(observer.every_step for observer in observers)
    playing: dict[int, int] = {}  # simulator -> episode
    observations: dict[int, Observation] = {}

    with tqdm(
        total=len(episodes), initial=len(ended), desc=description, unit="episode"
    ) as progress:
        while waiting or playing:
            starting = _next_episodes(pool, waiting, playing, episodes)
            playing |= starting
            observations |= pool.reset({i: episodes[e] for i, e in starting.items()})
            for i, episode in starting.items():
                for observer in observers:
                    observer.began(episode, episodes[episode], observations[i])

            batch = _batch(pool.num_simulators, playing, observations, steps)
            actions_bha = np.asarray(policy(batch))
            _check_actions(actions_bha, pool, execute_steps)
            chunks = {i: actions_bha[row, :execute_steps] for row, i in enumerate(playing)}
            for i, outcome in pool.execute(chunks, every_step=every_step).items():
                episode = playing[i]
                executed = chunks[i][: outcome.steps - steps[episode]]
                observations[i] = outcome.observation
                steps[episode] = outcome.steps
                success[episode] = outcome.success
                for observer in observers:
                    observer.acted(episode, executed, [*outcome.seen, outcome.observation])
                if outcome.done:
                    del playing[i]
                    end = Ended(outcome.success, outcome.steps)
                    for observer in observers:
                        observer.ended(episode, end)
                    if on_end is not None:
                        on_end(episodes[episode], end)
                    progress.update()
                    progress.set_postfix(successes=int(success.sum()))
    return RolloutResult(episodes=tuple(episodes), success=success, steps=steps)


def _next_episodes(
    pool: SimulatorPool,
    waiting: list[int],
    playing: Mapping[int, int],
    episodes: Sequence[tuple[str, int]],
) -> dict[int, int]:
    """Takes episodes from `waiting`, one for each idle simulator: {simulator: episode}.

    Loading a task may take seconds. So a simulator prefers the first episode of the task that it
    holds, then the first of one that none holds.
    """
    held = dict(pool.tasks)
    starting = {}
    for i in range(pool.num_simulators):
        if i in playing or not waiting:
            continue
        tasks = [episodes[e][0] for e in waiting]
        if held.get(i) in tasks:
            place = tasks.index(held[i])
        else:
            others = set(held.values())
            place = next((n for n, task in enumerate(tasks) if task not in others), 0)
        starting[i] = waiting.pop(place)
        held[i] = tasks[place]
    return starting


def _batch(
    size: int,
    playing: Mapping[int, int],
    observations: Mapping[int, Observation],
    steps: Int[np.ndarray, "n"],
) -> PolicyInput:
    """Stacks one row per playing simulator, in order, then copies of the first up to `size`."""
    simulators = list(playing)
    simulators += simulators[:1] * (size - len(simulators))
    episode_b = np.array([playing[i] for i in simulators])
    return PolicyInput(
        images_bnhwc=np.stack([observations[i].images_nhwc for i in simulators]),
        state_bp=np.stack([observations[i].state for i in simulators]),
        instructions=[observations[i].instruction for i in simulators],
        episode_b=episode_b,
        step_b=steps[episode_b],
    )


def _check_actions(actions_bha: np.ndarray, pool: SimulatorPool, execute_steps: int) -> None:
    size, action_dim = pool.num_simulators, pool.spec.action_dim
    shape = actions_bha.shape
    if len(shape) != 3 or shape[0] != size or shape[1] < execute_steps or shape[2] != action_dim:
        raise ValueError(
            f"the policy must return actions [{size}, at least {execute_steps}, {action_dim}], "
            f"found {list(shape)}"
        )
    if not np.isfinite(actions_bha).all():
        raise ValueError("the policy returned actions that are not finite")


def random_policy(spec: SimulatorSpec, horizon: int, seed: int = 0) -> Policy:
    """Baseline: actions uniform between the simulator's bounds."""

    def policy(batch: PolicyInput) -> Float[np.ndarray, "b horizon a"]:
        return np.stack(
            [
                np.random.default_rng([seed, episode, step]).uniform(
                    spec.action_low, spec.action_high, (horizon, spec.action_dim)
                )
                for episode, step in zip(batch.episode_b, batch.step_b, strict=True)
            ]
        )

    return policy


def replay_policy(
    demonstrations: Mapping[str, Sequence[Float[np.ndarray, "_ a"]]],
    horizon: int,
    relative: Sequence[bool],
    seed: int = 0,
) -> Policy:
    """Baseline: in each episode, the actions of one random demonstration of its instruction.

    It shows how often acting without looking succeeds. After the demonstration's end it holds
    still: displacements are 0, and targets, such as a gripper's, are those of the last action.

    demonstrations: instruction -> the actions of each of its demonstrations.
    relative: per dimension of the action, whether it is a displacement (`Encoding.relative`).
    seed: chooses the demonstrations.
    """

    def policy(batch: PolicyInput) -> Float[np.ndarray, "b horizon a"]:
        chunks = []
        for instruction, episode, step in zip(
            batch.instructions, batch.episode_b, batch.step_b, strict=True
        ):
            choices = demonstrations[instruction]
            actions_ta = choices[np.random.default_rng([seed, episode]).integers(len(choices))]
            steps = np.arange(step, step + horizon)
            chunk_ka = actions_ta[np.minimum(steps, len(actions_ta) - 1)]
            is_over_k = steps >= len(actions_ta)
            chunks.append(np.where(is_over_k[:, None] & np.array(relative), 0, chunk_ka))
        return np.stack(chunks)

    return policy


def with_instructions(policy: Policy, replacements: Mapping[str, str]) -> Policy:
    """The same policy, told `replacements[instruction]` instead of each instruction."""

    def replaced(batch: PolicyInput) -> Float[np.ndarray, "b horizon a"]:
        instructions = [replacements[instruction] for instruction in batch.instructions]
        return policy(batch._replace(instructions=instructions))

    return replaced


def with_blank_images(policy: Policy) -> Policy:
    """The same policy, shown black images."""

    def blinded(batch: PolicyInput) -> Float[np.ndarray, "b horizon a"]:
        return policy(batch._replace(images_bnhwc=np.zeros_like(batch.images_bnhwc)))

    return blinded


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a success rate; z = 1.96 covers 95 %.

    ValueError: no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"no rate for {successes} successes in {trials} trials")
    rate = successes / trials
    scale = 1 + z**2 / trials
    center = (rate + z**2 / (2 * trials)) / scale
    half_width = z / scale * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return center - half_width, center + half_width
