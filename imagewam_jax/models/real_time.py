"""Chunks of actions that go on from the one that runs (docs/spec/real_time.md, 1 and 2).

A robot executes what is left of its chunk while the next one is computed. So the first actions of
the next one are known: in training they are part of the data, in acting of the chunk that runs. A
policy that was trained so is given them as a `Prefix`; any other is drawn to them by `Guidance`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from imagewam_jax.models.flow_matching import TIMESTEPS

Condition = TypeVar("Condition")
SCHEDULES = ("exponential", "linear")  # of the weights of a guidance


def sample_delays(key: Key[Array, ""], batch: int, max_delay: int) -> Int[Array, " b"]:
    """How many actions of each sample are known in training: uniform from 0 to `max_delay`."""
    return jax.random.randint(key, (batch,), 0, max_delay + 1)


def known_rows(delay_b: Int[Array, " b"], horizon: int) -> Bool[Array, "b s"]:
    """The first `delay_b` rows of each chunk."""
    return jnp.arange(horizon) < delay_b[:, None]


def with_known(
    is_known_bs: Bool[Array, "b s"], known: Float[Array, "b s a"], actions: Float[Array, "b s a"]
) -> Float[Array, "b s a"]:
    """Noisy actions with the known ones in their places, in the dtype of the noisy ones."""
    return jnp.where(is_known_bs[..., None], known.astype(actions.dtype), actions)


def row_condition(is_known_bs: Bool[Array, "b s"], clean: Condition, noisy: Condition) -> Condition:
    """An expert's condition in which each row of a chunk has its own time.

    clean, noisy: the conditions at time 0, of known rows, and at the time of the others. All their
    arrays are [#b, 1, d]; those of the result are [b, s, d]. ValueError: one is not.
    """
    for x in jax.tree.leaves((clean, noisy)):
        if x.ndim != 3 or x.shape[1] != 1:
            raise ValueError(f"an expert's condition must have arrays [b, 1, d], found {x.shape}")
    return jax.tree.map(lambda c, n: jnp.where(is_known_bs[..., None], c, n), clean, noisy)


class EulerStep(NamedTuple):
    """What differs between the steps of acting: condition and timestep, and the length in time."""

    condition: Any
    timestep: Float[Array, ""]
    delta: Float[Array, ""]


# The expert: the velocity of noisy actions [b, s, a] at a step.
Network = Callable[[Float[Array, "b s a"], EulerStep], Float[Array, "b s a"]]


class Prefix(NamedTuple):
    """The first `delay_b` rows of `actions` are those of the next chunk, for a policy that was
    trained to go on from known actions. `actions` are normalized."""

    actions: Float[Array, "b s a"]
    delay_b: Int[Array, " b"]

    def held(self, actions: Float[Array, "b s a"]) -> Float[Array, "b s a"]:
        """Noisy actions with the known rows in their places."""
        return with_known(self._is_known, self.actions, actions)

    def velocity(
        self, network: Network, clean: Any, actions: Float[Array, "b s a"], step: EulerStep
    ) -> Float[Array, "b s a"]:
        """The network's velocity, with known rows at time 0, the condition of which is `clean`."""
        condition = row_condition(self._is_known, clean, step.condition)
        return network(actions, step._replace(condition=condition))

    @property
    def _is_known(self) -> Bool[Array, "b s"]:
        return known_rows(self.delay_b, self.actions.shape[1])


@dataclasses.dataclass(frozen=True)
class GuidanceConfig:
    """How a policy is drawn to the chunk that runs.

    follows_network: the correction is one of the noisy actions, by the Jacobian of the network. If
        not, the Jacobian counts as identity: the network is not differentiated.
    largest_gain: of the correction, at any time.
    schedule: how weights fall from the known actions on: one of SCHEDULES.
    """

    follows_network: bool = True
    largest_gain: float = 5.0
    schedule: str = "exponential"

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}, expected one of {SCHEDULES}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Guidance:
    """At every step the chunk that the network predicts is drawn to `actions`, which are
    normalized: each row by its weight from 0 to 1. Rows of no weight are what they are without
    guidance, bit for bit; errors, weights and gains are float32."""

    actions: Float[Array, "b s a"]
    weight_bs: Float[Array, "b s"]
    config: GuidanceConfig = dataclasses.field(
        default_factory=GuidanceConfig, metadata={"static": True}
    )

    def velocity(
        self, network: Network, actions: Float[Array, "b s a"], step: EulerStep
    ) -> Float[Array, "b s a"]:
        """The network's velocity, corrected."""
        time = step.timestep.astype(jnp.float32) / TIMESTEPS

        def predict(noisy):
            velocity = network(noisy.astype(actions.dtype), step).astype(jnp.float32)
            return noisy - time * velocity, velocity

        noisy = actions.astype(jnp.float32)
        if self.config.follows_network:
            clean, transposed, velocity = jax.vjp(predict, noisy, has_aux=True)
        else:
            clean, velocity = predict(noisy)
        correction = self.weight_bs[..., None] * (self.actions - clean)
        if self.config.follows_network:
            (correction,) = transposed(correction)
        return velocity - guidance_gain(time, step.delta, self.config.largest_gain) * correction


def guidance_gain(
    time: Float[Array, ""], delta: Float[Array, ""], largest: float
) -> Float[Array, ""]:
    """The factor of a correction: what the law of the noisy actions wants, and no more than brings
    a chunk just where it is drawn to in one step, since more would overshoot and diverge."""
    time, delta = time.astype(jnp.float32), delta.astype(jnp.float32)
    wanted = (time**2 + (1 - time) ** 2) / (time * (1 - time))  # infinite for pure noise
    return jnp.minimum(jnp.minimum(wanted, largest), 1 / jnp.abs(delta))


def guidance_weights(
    horizon: int,
    length_b: Int[Array, " b"],
    delay_b: Int[Array, " b"],
    execute_b: Int[Array, " b"],
    schedule: str,
) -> Float[Array, "b s"]:
    """How much each row of a chunk is drawn to the chunk that runs.

    1 for the `delay_b` rows that will have been executed, then falling to 0 at the row that only
    the new chunk has: where one of the `length_b` rows that are left ends, or where the last
    `execute_b` rows of the new chunk begin.
    """
    end = jnp.minimum(horizon - execute_b, length_b)[:, None]
    start = jnp.minimum(delay_b[:, None], end)
    row = jnp.arange(horizon)
    weight = jnp.clip((start - 1 - row) / (end - start + 1) + 1, 0, 1)
    if schedule == "exponential":
        weight = weight * jnp.expm1(weight) / (np.e - 1)
    return jnp.where(row < end, weight, 0).astype(jnp.float32)
