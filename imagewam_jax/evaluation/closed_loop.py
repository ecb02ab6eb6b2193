"""Success of a policy in a simulator, beside what succeeds without it or without looking."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from imagewam_jax.data.datasets import Dataset
from imagewam_jax.evaluation.offline import sample_noise
from imagewam_jax.evaluation.rollout import (
    Policy,
    PolicyInput,
    RolloutResult,
    random_policy,
    replay_policy,
    rollout,
    wilson_interval,
    with_blank_images,
    with_instructions,
)
from imagewam_jax.evaluation.simulators.base import SimulatorSpec
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from imagewam_jax.policy import policy as trained

FIRST_SEED = 10_000  # demonstrations have smaller ones
SIMULATORS_PER_WORKER = 8

POLICY, SWAPPED, BLANK = "policy", "policy, other instruction", "policy, black image"
RANDOM, REPLAY = "random actions", "replay of a demonstration"


class Success(NamedTuple):
    """Successes of one way to act, with the 95 % interval of the rate."""

    successes: int
    episodes: int
    low: float
    high: float


def evaluate_closed_loop(
    policy: trained.Policy, dataset: Dataset, simulator: str, *, episodes: int, workers: int = 2
) -> tuple[dict[str, Success], dict[str, RolloutResult], SimulatorSpec]:
    """Plays the same episodes in five ways (see the names above), in the simulator of its name."""
    execute_steps = policy.config["acting"]["execute_steps"]
    simulators = workers * SIMULATORS_PER_WORKER
    options = policy.config["evaluation"]["options"]
    with SimulatorPool(
        simulator, num_simulators=simulators, num_workers=workers, options=options
    ) as pool:
        spec = pool.spec
        tasks = list(spec.instructions)
        starts = [(tasks[i % len(tasks)], FIRST_SEED + i // len(tasks)) for i in range(episodes)]
        instructions = list(spec.instructions.values())
        other = dict(zip(instructions, instructions[1:] + instructions[:1], strict=True))
        act = acting(policy)
        demonstrations = demonstrations_by_instruction(
            dataset, policy.config["data"]["train_split"]
        )
        ways: dict[str, Policy] = {
            POLICY: act,
            SWAPPED: with_instructions(act, other),
            BLANK: with_blank_images(act),
            RANDOM: random_policy(spec, policy.horizon),
            REPLAY: replay_policy(demonstrations, policy.horizon),
        }
        results = {
            name: rollout(
                pool,
                way,
                starts,
                execute_steps=execute_steps,
                record=range(min(4, episodes)) if name in (POLICY, SWAPPED) else (),
                description=name,
            )
            for name, way in ways.items()
        }
    return {name: success_of(result) for name, result in results.items()}, results, spec


def acting(policy: trained.Policy, seed: int = 0) -> Policy:
    """A trained policy as rollouts want it."""

    def act(batch: PolicyInput) -> Float[np.ndarray, "b horizon a"]:
        seeds = [[seed, *pair] for pair in zip(batch.episode_b, batch.step_b, strict=True)]
        observations = trained.Observations(
            batch.images_bnhwc, batch.state_bp, policy.text_ids(batch.instructions)
        )
        return policy.act(observations, sample_noise(seeds, (policy.horizon, policy.action_dim)))

    return act


def demonstrations_by_instruction(
    dataset: Dataset, part: str
) -> Mapping[str, list[Float[np.ndarray, "_ a"]]]:
    """The actions of each episode, under its instruction."""
    reader = dataset.reader(part)
    found: dict[str, list] = {}
    for episode in range(*dataset.episodes(part)):
        start = reader.split.episode_start[episode]
        stop = start + reader.standard.episode_steps[episode]
        instruction = dataset.instructions[dataset.text_rows[reader.standard.text_ids[start, 0]]]
        found.setdefault(instruction, []).append(reader.standard.actions[start:stop])
    reader.close()
    return found


def success_of(result: RolloutResult) -> Success:
    successes, episodes = int(result.success.sum()), len(result.success)
    return Success(successes, episodes, *wilson_interval(successes, episodes))
