"""Success of a policy in a simulator, compared with variants of it and with simple baselines."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from imagewam_jax.data.datasets import Dataset
from imagewam_jax.errors import ConfigError
from imagewam_jax.evaluation.delays import (
    NAIVE,
    LatePolicy,
    check_delays,
    seam_of,
    total,
    variant_name,
)
from imagewam_jax.evaluation.films import Films
from imagewam_jax.evaluation.journal import Ended, Journal
from imagewam_jax.evaluation.recording import Recording
from imagewam_jax.evaluation.rollout import (
    Observer,
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
from imagewam_jax.evaluation.simulators import simulators_per_worker
from imagewam_jax.evaluation.simulators.base import SimulatorSpec
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from imagewam_jax.policy import policy as trained
from imagewam_jax.policy.noise import sample_noise
from imagewam_jax.policy.real_time import offered_methods
from imagewam_jax.preprocess.inputs import Observations

FIRST_SEED = 10_000  # the seeds of demonstrations are smaller
STRIPS = 4  # film strips of the policy, and of it under another instruction

POLICY, SWAPPED, BLANK = "policy", "policy, other instruction", "policy, black image"
RANDOM, REPLAY = "random actions", "replay of a demonstration"


class Success(NamedTuple):
    """Successes of one policy variant, with the 95 % interval of the rate."""

    successes: int
    episodes: int
    low: float
    high: float


def evaluate_closed_loop(
    policy: trained.Policy,
    dataset: Dataset,
    simulator: str,
    *,
    options: Mapping[str, Any] | None = None,
    episodes: int,
    workers: int = 2,
    journal: Journal | None = None,
    films: Path | None = None,
    recording: Recording | None = None,
    execute_steps: int | None = None,
    delay: int | None = None,
    real_time: Sequence[str] | None = None,
) -> tuple[dict[str, Success], dict[str, RolloutResult], SimulatorSpec]:
    """Plays the same episodes with five policy variants (see their names above) in a simulator.

    Without a second instruction there is no variant with another one, and without demonstrations
    of every instruction none that replays them.

    options: keyword options of the simulator.
    journal: episodes that it has are not played again, and those that end are added.
    films: a folder for film strips and videos of what the policy saw (`films.py`).
    recording: is told of all that the policy does, and of no variant of it. Episodes that the
        journal has and the recording has not are played again, with the same end.
    execute_steps: actions executed of each chunk; by default `acting.execute_steps`.
    delay: play also the policy whose chunks arrive so many steps late, once for each method in
        `real_time` (see `delays`); by default without a method and with the best that it offers.

    Returns success and rollouts by variant, and the description of the simulator. ConfigError: the
    policy does not fit it, or the delay; or it has fewer start states. CheckpointError: the policy
    does not know an instruction.
    """
    if execute_steps is None:
        execute_steps = policy.config["acting"]["execute_steps"]
    simulators = workers * simulators_per_worker(simulator)
    with SimulatorPool(
        simulator, num_simulators=simulators, num_workers=workers, options=options or {}
    ) as pool:
        spec = pool.spec
        _check_fit(policy, simulator, spec, execute_steps)
        starts = first_starts(spec, episodes)
        instructions = spec.all_instructions
        policy.text_ids(instructions)  # an unknown one is an error now, and not in mid-rollout
        act = acting(policy)
        variants: dict[str, Policy] = {POLICY: act}
        variants |= _late(policy, execute_steps, delay, real_time)
        if other := spec.other_instructions:
            variants[SWAPPED] = with_instructions(act, other)
        variants[BLANK] = with_blank_images(act)
        variants[RANDOM] = random_policy(spec, policy.horizon)
        demonstrations = demonstrations_by_instruction(
            dataset, policy.config["data"]["train_split"]
        )
        if set(instructions) <= set(demonstrations):
            variants[REPLAY] = replay_policy(
                demonstrations, policy.horizon, dataset.spec.action.relative
            )
        else:
            missing = sorted(set(instructions) - set(demonstrations))
            print(f"no replay: the training split has no demonstrations of {missing}")
        results = {}
        for name, variant in variants.items():
            ended = journal.ended(name, starts) if journal else {}
            with contextlib.ExitStack() as stack:
                observers: list[Observer] = []
                if recording is not None and name == POLICY:
                    ended = {e: ended[e] for e in sorted(recording.episodes & ended.keys())}
                    observers.append(recording)
                if films is not None:
                    film = Films(
                        films,
                        name,
                        starts,
                        frames_per_second=spec.control_hz / execute_steps,
                        strips=STRIPS if name in (POLICY, SWAPPED) else 0,
                        ended=ended,
                    )
                    observers.append(stack.enter_context(film))
                result = rollout(
                    pool,
                    variant,
                    starts,
                    execute_steps=execute_steps,
                    observers=observers,
                    ended=ended,
                    on_end=partial(_note, journal, name, variant, starts) if journal else None,
                    description=name,
                )
            if isinstance(variant, LatePolicy):
                seams = [seam_of(journal.measured(name, starts[e])) for e in ended]
                seam = total([*seams, *variant.seams.values()])
                result = dataclasses.replace(result, seam=seam.means())
            results[name] = result
    return {name: success_of(result) for name, result in results.items()}, results, spec


def _late(
    policy: trained.Policy, execute_steps: int, delay: int | None, methods: Sequence[str] | None
) -> dict[str, LatePolicy]:
    """The policy, late, with each method; none without a delay. ConfigError: it cannot be."""
    if delay is None:
        if methods is not None:
            raise ConfigError(f"real_time is {list(methods)}: expected a delay beside it")
        return {}
    if methods is None:
        offered = offered_methods(policy.config, policy.config["acting"]["euler_steps"])
        methods = (NAIVE, *offered[:1])
    check_delays(policy, delay, tuple(methods), execute_steps)
    return {
        variant_name(delay, method): LatePolicy(policy, delay, method, execute_steps)
        for method in methods
    }


def _note(
    journal: Journal,
    name: str,
    variant: Policy,
    starts: Sequence[tuple[str, int]],
    start: tuple[str, int],
    ended: Ended,
) -> None:
    """Notes the end of an episode; of a late policy also where its chunks met."""
    late = isinstance(variant, LatePolicy)
    seam = variant.seams[starts.index(start)]._asdict() if late else {}
    journal.add(name, start, ended, seam)


def first_starts(spec: SimulatorSpec, episodes: int) -> list[tuple[str, int]]:
    """The episodes (task, seed) that an evaluation plays: every task in turn, then each again.

    Seeds are the numbers of the stored start states, or count from FIRST_SEED where none are.
    ConfigError: fewer are stored.
    """
    tasks = list(spec.instructions)
    if spec.trials is None:
        return [(tasks[i % len(tasks)], FIRST_SEED + i // len(tasks)) for i in range(episodes)]
    rounds = range(max(spec.trials.values()))
    stored = [(task, trial) for trial in rounds for task in tasks if trial < spec.trials[task]]
    if episodes > len(stored):
        raise ConfigError(
            f"episodes is {episodes}, and the simulator has {len(stored)} start states: "
            f"{len(tasks)} tasks with up to {len(rounds)}"
        )
    return stored[:episodes]


def _check_fit(
    policy: trained.Policy, simulator: str, spec: SimulatorSpec, execute_steps: int
) -> None:
    """ConfigError unless a policy sees and does what a simulator shows and takes."""
    pairs = {
        "cameras": (len(spec.cameras), len(policy.cameras)),
        "dimensions of the state": (len(spec.state_names), policy.state_dim),
        "dimensions of the action": (spec.action_dim, policy.action_dim),
    }
    wrong = [
        f"{its} {name}, the policy {ours}" for name, (its, ours) in pairs.items() if its != ours
    ]
    if wrong:
        raise ConfigError(f"evaluation.simulator {simulator!r} has {'; '.join(wrong)}")
    if not 1 <= execute_steps <= policy.horizon:
        raise ConfigError(
            f"acting.execute_steps is {execute_steps}, expected 1 to {policy.horizon}, the horizon"
        )
    if spec.execute_steps not in (None, execute_steps):
        print(
            f"acting.execute_steps is {execute_steps}: the protocol of {simulator!r} executes "
            f"{spec.execute_steps}"
        )


def acting(policy: trained.Policy, seed: int = 0) -> Policy:
    """Makes a policy for rollouts of a trained one; its noise depends on `seed` alone."""

    def act(batch: PolicyInput) -> Float[np.ndarray, "b horizon a"]:
        seeds = [[seed, *pair] for pair in zip(batch.episode_b, batch.step_b, strict=True)]
        observations = Observations(
            batch.images_bnhwc, batch.state_bp, policy.text_ids(batch.instructions)
        )
        return policy.act(observations, sample_noise(seeds, (policy.horizon, policy.action_dim)))

    return act


def demonstrations_by_instruction(
    dataset: Dataset, split: str
) -> Mapping[str, list[Float[np.ndarray, "_ a"]]]:
    """Reads the actions of all episodes whose actions are finite, grouped by instruction."""
    reader = dataset.reader(split)
    found: dict[str, list] = {}
    for episode in dataset.episodes(split).tolist():
        start = reader.split.episode_start[episode]
        stop = start + reader.standardized.episode_steps[episode]
        text_row = dataset.text_rows[reader.standardized.text_ids[start, 0]]
        instruction = dataset.instructions[text_row]
        actions = reader.standardized.actions[start:stop]
        if np.isfinite(actions).all():
            found.setdefault(instruction, []).append(actions)
    reader.close()
    return found


def success_of(result: RolloutResult) -> Success:
    """Counts the successes of a rollout."""
    return _counted(result.success)


def success_by_task(result: RolloutResult) -> dict[str, Success]:
    """Counts the successes of each task that was played."""
    tasks = np.array([task for task, _ in result.episodes])
    return {str(task): _counted(result.success[tasks == task]) for task in dict.fromkeys(tasks)}


def success_by_suite(result: RolloutResult, spec: SimulatorSpec) -> dict[str, Success]:
    """Counts the successes of each suite, of all its tasks together; none where tasks have none."""
    tasks = np.array([task for task, _ in result.episodes])
    played = {suite: np.isin(tasks, of_suite) for suite, of_suite in spec.suites.items() if suite}
    return {suite: _counted(result.success[of]) for suite, of in played.items() if of.any()}


def mean_of_suites(suites: Mapping[str, Success]) -> tuple[float, float]:
    """The mean of the suites' rates, which is the score of benchmarks, and its standard error."""
    rates = np.array([s.successes / s.episodes for s in suites.values()])
    episodes = np.array([s.episodes for s in suites.values()])
    error = np.sqrt((rates * (1 - rates) / episodes).sum()) / len(suites)
    return float(rates.mean()), float(error)


def _counted(success: Bool[np.ndarray, "n"]) -> Success:
    successes, episodes = int(success.sum()), len(success)
    return Success(successes, episodes, *wilson_interval(successes, episodes))
