"""From rows that robots ask for to action chunks: one compiled batch, and what is told about it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from imagewam_jax.errors import ConfigError, InputError, UserError
from imagewam_jax.policy.checks import check_euler_steps
from imagewam_jax.policy.noise import sample_noise
from imagewam_jax.policy.policy import Policy, load_policy
from imagewam_jax.policy.real_time import Running, stack_running
from imagewam_jax.preprocess.inputs import Observations
from imagewam_jax.serving.contract import Contract, make_contract

_SHOWN = 5  # known instructions that an error names
_WARM_UP = "wait"  # an instruction that compiles the text encoder
ACT, ACT_REAL_TIME = "act", "act_real_time"  # the programs, each of which has all sizes of batches


class Row(NamedTuple):
    """What one robot sees and is told, what its noise is drawn from, and what it executes in the
    meantime, if its chunk is to go on from that."""

    images: UInt8[np.ndarray, "camera h w 3"]
    state: Float32[np.ndarray, " p"]
    prompt: str
    seed: tuple[int, ...]
    step: int
    running: Running | None = None


class Chunk(NamedTuple):
    """actions: in real units, finite. clipped: values beyond the range of the data."""

    actions: Float32[np.ndarray, "s a"]
    clipped: int


class NotFinite(Exception):
    """A policy answered with NaN or infinite actions."""


def make_actor(
    checkpoint: Path | str,
    *,
    keys: Mapping[str, str] | None = None,
    image_size: tuple[int, int] | None = None,
    euler_steps: int | None = None,
    clip: bool = False,
    real_time: str | None = None,
    **options: Any,
) -> tuple["Actor", Contract]:
    """Loads a policy to be served, and what clients must know of it.

    keys, image_size, euler_steps, real_time: see `make_contract`. clip: see `Actor`. options: of
    `load_policy`.
    """
    policy = load_policy(checkpoint, **options)
    contract = make_contract(
        policy,
        checkpoint,
        keys=keys,
        image_size=image_size,
        euler_steps=euler_steps,
        real_time=real_time,
    )
    return Actor(policy, contract, euler_steps=euler_steps, clip=clip), contract


class Actor:
    """A policy that acts on rows, in batches of sizes that were compiled before.

    Its methods are called by one thread at a time, but for `check_prompt`.
    """

    def __init__(
        self,
        policy: Policy,
        contract: Contract,
        *,
        euler_steps: int | None = None,
        clip: bool = False,
    ):
        """clip: cut actions off at the range of the data. ConfigError: it is not known."""
        if clip and contract.action_range is None:
            raise ConfigError("--clip: the checkpoint has no q01 and q99 of its actions")
        self._policy, self._contract = policy, contract
        self._euler_steps = None if euler_steps is None else check_euler_steps(euler_steps)
        self._clip = clip

    def check_prompt(self, prompt: str) -> bool:
        """Whether a prompt can be acted on at once; False: it must be encoded before.

        InputError: it is not known, and cannot be encoded.
        """
        if self._policy.knows(prompt):
            return True
        if self._policy.encodes_text:
            return False
        known = self._policy.instructions
        several = f" (the first of {len(known)})" if len(known) > _SHOWN else ""
        raise InputError(
            f"{self._contract.prompt_key}: expected one of {list(known[:_SHOWN])}{several}, got "
            f"{prompt!r}; a table of `imagewam encode-text` or a text encoder adds more"
        )

    def encode(self, prompt: str) -> None:
        """Encodes a new prompt. InputError: it cannot be."""
        try:
            self._policy.text_ids([prompt])
        except UserError as error:
            raise InputError(f"{self._contract.prompt_key}: {error}") from error

    def compile(self, size: int) -> dict[str, float]:
        """Compiles acting for a number of rows and runs it once; returns each program's seconds."""
        start = time.perf_counter()
        if self._policy.encodes_text:
            self.encode(_WARM_UP)
        prompt = next(iter(self._policy.instructions), _WARM_UP)
        images = np.zeros((len(self._contract.image_keys), *self._contract.image_size, 3), np.uint8)
        row = Row(images, np.zeros(self._contract.state_dim, np.float32), prompt, (0,), 0)
        self.act([row], size)
        seconds = {ACT: time.perf_counter() - start}
        if self._contract.real_time is not None:
            start = time.perf_counter()
            nothing = np.zeros((1, self._contract.action_shape[1]), np.float32)
            self.act([row._replace(running=Running(nothing, 0, 1))], size)
            seconds[ACT_REAL_TIME] = time.perf_counter() - start
        return seconds

    def act(self, rows: Sequence[Row], size: int) -> list[Chunk | NotFinite]:
        """A chunk for each row, from a batch of `size` rows; those that lack repeat the first.

        Rows beside one that goes on from another chunk are computed with it.
        """
        padded = [*rows, *[rows[0]] * (size - len(rows))]
        observations = Observations(
            images=np.stack([row.images for row in padded]),
            state=np.stack([row.state for row in padded]),
            text_id=self._policy.text_ids([row.prompt for row in padded]),
        )
        seeds = [[*row.seed, row.step] for row in padded]
        noise = sample_noise(seeds, (self._policy.horizon, self._policy.action_dim))
        if program_of(rows) == ACT:
            actions = self._policy.act(observations, noise, self._euler_steps)
        else:
            previous = stack_running([row.running for row in padded], *self._contract.action_shape)
            actions = self._policy.act_real_time(
                observations, noise, previous, self._contract.real_time.method, self._euler_steps
            )
        return [self._chunk(actions[number]) for number in range(len(rows))]

    def _chunk(self, actions: Float[np.ndarray, "s a"]) -> Chunk | NotFinite:
        if not np.isfinite(actions).all():
            return NotFinite("the policy's actions are not finite")
        within = self._contract.action_range
        if within is None:
            return Chunk(actions, 0)
        clipped = np.clip(actions, within.low, within.high)
        count = int((clipped != actions).sum())
        return Chunk(clipped if self._clip else actions, count)


def program_of(rows: Sequence[Row]) -> str:
    """The program that a batch of these rows needs."""
    return ACT if all(row.running is None for row in rows) else ACT_REAL_TIME
