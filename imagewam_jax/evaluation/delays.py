"""A policy that is late: the robot goes on with its chunk while the next one is computed.

Of each chunk `execute_steps` actions are executed. When the next one is asked for, the first
`delay` actions of what is left are executed before it arrives, and then its own, from the same
step on (docs/spec/real_time.md, 1 and 2).
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from imagewam_jax.errors import ConfigError
from imagewam_jax.evaluation.rollout import PolicyInput
from imagewam_jax.policy import policy as trained
from imagewam_jax.policy.noise import sample_noise
from imagewam_jax.policy.real_time import Running, longest_delay, offered_methods, stack_running
from imagewam_jax.preprocess.inputs import Observations

NAIVE = "naive"  # a method: the next chunk does not know of what is executed in the meantime


class Seam(NamedTuple):
    """Where chunks meet, summed over decisions: absolute differences in normalized units, averaged
    over dimensions.

    difference: between the next chunk's first `delay` actions and those that are executed instead.
    jump: between the first action that is executed of a chunk and the action before it.
    """

    decisions: int = 0
    difference: float = 0.0
    jump: float = 0.0

    def means(self) -> dict[str, float | None]:
        """The means over decisions; None where there was none."""
        sums = {"difference": self.difference, "jump": self.jump}
        return {n: x / self.decisions if self.decisions else None for n, x in sums.items()}


def total(seams: Iterable[Seam]) -> Seam:
    """The sum over episodes."""
    return Seam(*(sum(each) for each in zip(Seam(), *seams, strict=True)))


def variant_name(delay: int, method: str) -> str:
    """What a late policy is called."""
    return f"policy, {delay} step{'s' * (delay != 1)} late, {method}"


def check_delays(
    policy: trained.Policy, delay: int, methods: tuple[str, ...], execute_steps: int
) -> None:
    """ConfigError: chunks are too short for a delay, or the policy does not offer a method."""
    most = min(execute_steps, policy.horizon - execute_steps)
    if not 0 <= delay <= most:
        raise ConfigError(
            f"delay is {delay}, expected 0 to {most}: of {policy.horizon} actions of a chunk "
            f"{execute_steps} are executed, and the others must last until the next one arrives"
        )
    offered = (NAIVE, *offered_methods(policy.config, policy.config["acting"]["euler_steps"]))
    for method in methods:
        if method not in offered:
            raise ConfigError(f"real_time has {method!r}, the policy offers {list(offered)}")
        if method != NAIVE:
            most = longest_delay(policy.config, policy.horizon, method)
            if delay > most:
                raise ConfigError(
                    f"delay is {delay}, the method {method!r} goes on after up to {most}"
                )


class LatePolicy:
    """A policy for rollouts, each of whose chunks arrives `delay` steps late, but for the first of
    an episode: the robot waits for that one. Its noise is that of `closed_loop.acting`.

    method: NAIVE, or one of `policy.real_time.METHODS`.
    seams: of each episode.
    """

    def __init__(
        self, policy: trained.Policy, delay: int, method: str, execute_steps: int, seed: int = 0
    ):
        self._policy, self._delay, self._method = policy, delay, method
        self._execute_steps, self._seed = execute_steps, seed
        self._chunks: dict[int, tuple[int, Float[np.ndarray, "s a"]]] = {}  # origin, what runs
        self.seams: dict[int, Seam] = {}

    def __call__(self, batch: PolicyInput) -> Float[np.ndarray, "b horizon a"]:
        rows = list(zip(batch.episode_b.tolist(), batch.step_b.tolist(), strict=True))
        running = [self._running(*row) for row in rows]
        chunks = self._act(batch, rows, running).copy()
        for number, (episode, step) in enumerate(rows):
            first = rows.index((episode, step))
            if first < number:  # it stands for a simulator without an episode
                chunks[number] = chunks[first]
                continue
            if running[number] is not None:
                self._measure(episode, running[number].actions, chunks[number], step)
                chunks[number, : self._delay] = running[number].actions[: self._delay]
            self._chunks[episode] = step, chunks[number].copy()
        return chunks

    def _running(self, episode: int, step: int) -> Running | None:
        if step == 0:
            self.seams[episode] = Seam()
            return None
        origin, chunk = self._chunks[episode]
        return Running(chunk[step - origin :], self._delay, self._execute_steps)

    def _act(
        self, batch: PolicyInput, rows: list[tuple[int, int]], running: list[Running | None]
    ) -> Float[np.ndarray, "b horizon a"]:
        policy = self._policy
        observations = Observations(
            batch.images_bnhwc, batch.state_bp, policy.text_ids(batch.instructions)
        )
        shape = policy.horizon, policy.action_dim
        noise = sample_noise([[self._seed, *row] for row in rows], shape)
        if self._method == NAIVE:
            return policy.act(observations, noise)
        previous = stack_running(running, *shape)
        return policy.act_real_time(observations, noise, previous, self._method)

    def _measure(
        self,
        episode: int,
        left: Float[np.ndarray, "k a"],
        chunk: Float[np.ndarray, "s a"],
        step: int,
    ) -> None:
        origin, before = self._chunks[episode]
        delay = self._delay
        last = left[delay - 1] if delay else before[step - origin - 1]
        left, chunk, last = map(self._policy.normalized_actions, (left, chunk, last))
        difference = np.abs(chunk[:delay] - left[:delay]).mean() if delay else 0.0
        jump = np.abs(chunk[delay] - last).mean()
        self.seams[episode] = total([self.seams[episode], Seam(1, float(difference), float(jump))])


def seam_of(more: Mapping[str, float]) -> Seam:
    """A seam as a journal keeps it, by its fields."""
    return Seam(*(more[name] for name in Seam._fields))
