"""Episodes that are played through a server end as those without one, step for step."""

import numpy as np
import pytest

from imagewam_jax.client.remote import RemotePolicy
from imagewam_jax.errors import RequestRefused
from imagewam_jax.evaluation.asking import asking
from imagewam_jax.evaluation.closed_loop import acting
from imagewam_jax.evaluation.rollout import PolicyInput, rollout
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from tests.serving.moving_camera import NAME
from tests.serving.robots import FAST, served, tiny_actor

EPISODES = [("open", 0), ("close", 1), ("open", 2), ("close", 3), ("open", 4), ("close", 5)]


class Frames:
    """Keeps what is seen in each episode (a `rollout.Observer`)."""

    every_step = True

    def __init__(self):
        self.seen: dict[int, list[np.ndarray]] = {}

    def began(self, episode, start, observation):
        self.seen[episode] = [observation.images_nhwc]

    def acted(self, episode, actions, seen):
        self.seen[episode] += [observation.images_nhwc for observation in seen]

    def ended(self, episode, ended):
        pass

    def of(self, episode: int) -> np.ndarray:
        return np.stack(self.seen[episode])


def test_every_episode_is_the_same(policy):
    """All batches are of two rows, as those of the pool are: bit for bit the same frames."""
    with (
        served(*tiny_actor(), FAST._replace(buckets=(2,))) as running,
        SimulatorPool(NAME, num_simulators=2, num_workers=1) as pool,
    ):
        sources = [RemotePolicy(running.url) for _ in range(2)]
        films = [Frames() for _ in range(3)]
        policies = (acting(policy, 7), asking(sources, 7), asking(sources, 8))
        direct, asked, _ = (
            rollout(pool, each, EPISODES, execute_steps=3, observers=[film])
            for each, film in zip(policies, films, strict=True)
        )
        for source in sources:
            source.close()
    assert direct.success.sum() > 0 and direct.steps.min() > 3
    np.testing.assert_array_equal(direct.success, asked.success)
    np.testing.assert_array_equal(direct.steps, asked.steps)
    for episode in range(len(EPISODES)):
        np.testing.assert_array_equal(films[0].of(episode), films[1].of(episode))
    assert any(
        films[0].of(episode).shape != films[2].of(episode).shape
        or (films[0].of(episode) != films[2].of(episode)).any()
        for episode in range(len(EPISODES))
    )


def test_images_that_the_served_policy_does_not_take(server):
    source = RemotePolicy(server.url)
    batch = PolicyInput(
        np.zeros((1, 1, 32, 32, 3), np.uint8),
        np.zeros((1, 4), np.float32),
        ["open the faucet"],
        np.zeros(1, int),
        np.zeros(1, int),
    )
    with pytest.raises(RequestRefused, match=r"expected uint8 RGB \[64, 64, 3\], got uint8 \[32"):
        asking([source])(batch)
    source.close()
