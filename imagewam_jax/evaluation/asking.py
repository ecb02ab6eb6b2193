"""A policy for rollouts that asks sources of chunks, such as a server, as a robot does."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float

from imagewam_jax.client.source import ChunkSource
from imagewam_jax.evaluation.rollout import Policy, PolicyInput
from imagewam_jax.wire import protocol


def asking(sources: Sequence[ChunkSource], seed: int = 0) -> Policy:
    """A policy whose row r is answered by `sources[r]`, all of them at once.

    A connection answers one request after the other: rows that share one wait for each other. The
    noise is that of `closed_loop.acting` with this seed, so that episodes end as they do without a
    server. RequestRefused: a row does not fit the policy that is served.
    """

    def policy(batch: PolicyInput) -> Float[np.ndarray, "b horizon a"]:
        rows = range(len(batch.instructions))
        with ThreadPoolExecutor(len(sources), "asking") as workers:
            return np.stack(list(workers.map(ask, sources, [batch] * len(rows), rows)))

    def ask(source: ChunkSource, batch: PolicyInput, row: int) -> Float[np.ndarray, "horizon a"]:
        about = source.metadata
        request = dict(zip(about["image_keys"], batch.images_bnhwc[row], strict=True))
        if about["state_key"]:
            request[about["state_key"]] = batch.state_bp[row]
        request[about["prompt_key"]] = batch.instructions[row]
        request[protocol.SEED] = [seed, int(batch.episode_b[row])]
        request[protocol.STEP] = int(batch.step_b[row])
        return source.infer(request)[protocol.ACTIONS]

    return policy
