"""What robots execute while their next chunks are computed, and how these go on from it
(docs/spec/real_time.md, 1 to 3)."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from imagewam_jax.errors import InputError
from imagewam_jax.models.real_time import GuidanceConfig

TRAINED, GUIDED, IDENTITY = "trained", "guided", "identity"
# The guidance of each method; None: the policy was trained to go on from known actions.
METHODS: Mapping[str, GuidanceConfig | None] = MappingProxyType(
    {TRAINED: None, GUIDED: GuidanceConfig(), IDENTITY: GuidanceConfig(follows_network=False)}
)


class Running(NamedTuple):
    """What one robot executes while its next chunk is computed.

    actions: of the chunk that runs, from the first that was not executed at the observation on, in
        real units.
    delay: how many of them will have been executed when the next chunk arrives.
    execute: how many actions of the next chunk, counted from its first, are executed before that
        after it begins.
    """

    actions: Float32[np.ndarray, "k a"]
    delay: int
    execute: int


class Previous(NamedTuple):
    """The same of several robots: `actions` behind the first `length` of a row do not count, and a
    robot of length 0 has no chunk yet."""

    actions: Float32[np.ndarray, "b s a"]
    length: Int32[np.ndarray, " b"]
    delay: Int32[np.ndarray, " b"]
    execute: Int32[np.ndarray, " b"]


def stack_running(robots: Sequence[Running | None], horizon: int, action_dim: int) -> Previous:
    """What robots execute, row by row; None: the robot has no chunk yet."""
    actions = np.zeros((len(robots), horizon, action_dim), np.float32)
    for row, running in enumerate(robots):
        if running is not None:
            actions[row, : len(running.actions)] = running.actions
    counts = [(0, 0, horizon) if r is None else (len(r.actions), *r[1:]) for r in robots]
    return Previous(actions, *np.array(counts, np.int32).T)


def offered_methods(config: Mapping[str, Any], euler_steps: int) -> tuple[str, ...]:
    """The METHODS of a policy with this config, the best first.

    One Euler step cannot be guided: what it predicts hardly depends on the noisy actions.
    """
    trained = (TRAINED,) if trained_delay(config) else ()
    return trained + ((GUIDED, IDENTITY) if euler_steps > 1 else ())


def trained_delay(config: Mapping[str, Any]) -> int:
    """The longest delay that a policy was trained with; 0: it never saw one."""
    return config["train"].get("max_delay", 0)


def longest_delay(config: Mapping[str, Any], horizon: int, method: str) -> int:
    """The longest delay after which a method goes on."""
    return trained_delay(config) if method == TRAINED else horizon - 1


def check_method(config: Mapping[str, Any], method: str, euler_steps: int) -> None:
    """InputError: the policy does not offer a method."""
    offered = offered_methods(config, euler_steps)
    if method not in offered:
        raise InputError(
            f"method: expected one of {list(offered)}, found {method!r}; {TRAINED!r} is for "
            "policies trained with train.max_delay, the others need several Euler steps"
        )
