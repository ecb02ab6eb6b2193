"""From rows to chunks: each is that of its row, finite, and counted where it leaves the data."""

import random

import numpy as np
import pytest

from imagewam_jax.serving.acting import Actor, NotFinite, Row
from imagewam_jax.serving.contract import ActionRange
from tests.serving.robots import FAST, Robot, acted, observation, served, tiny_actor


def test_rows_are_never_exchanged(tiny, policy):
    """Batches of rows in any order and number: each chunk is bit for bit that of its row in a batch
    of the same size."""
    actor, _ = tiny
    asked = [observation(seed) for seed in range(8)]
    rows = [
        Row(
            each["observation/image"][None],
            each["observation/state"].astype(np.float32),
            each["prompt"],
            (each["imagewam/seed"],),
            0,
        )
        for each in asked
    ]
    expected = acted(policy, asked, [0] * 8, 8)
    mixing = random.Random(0)
    for _ in range(100):
        order = mixing.sample(range(8), mixing.randint(1, 8))
        for number, chunk in zip(order, actor.act([rows[n] for n in order], 8), strict=True):
            np.testing.assert_array_equal(chunk.actions, expected[number])


class Broken(Actor):
    """A policy that fails, or answers with NaN."""

    failure = None

    def act(self, rows, size):
        if isinstance(self.failure, NotFinite):
            return [self.failure] * len(rows)
        if self.failure:
            raise self.failure
        return super().act(rows, size)


@pytest.mark.parametrize("failure", [RuntimeError("secret of the house"), NotFinite("nan")])
def test_a_policy_that_fails_tells_a_number_alone(tiny, failure, caplog):
    actor, contract = tiny
    actor = Broken(actor._policy, contract)
    with served(actor, contract, FAST._replace(buckets=(1,))) as running:
        actor.failure = failure
        with Robot(running.url) as robot:
            answer = robot.ask(observation())
            kind, _, number = answer.partition(" ")
            actor.failure = None
            assert robot.ask(observation())["actions"].size
    assert kind == "InternalError" and len(number) == 8 and "secret" not in answer
    assert any(number in record.getMessage() and record.exc_info for record in caplog.records)


def test_actions_that_are_not_finite_are_never_sent(tiny):
    actor, _ = tiny
    assert isinstance(actor._chunk(np.full((4, 4), np.nan, np.float32)), NotFinite)


def test_actions_beyond_the_data_are_counted_and_clipped(tiny):
    actor, contract = tiny
    low, high = np.full(4, -0.1, np.float32), np.full(4, 0.1, np.float32)
    tight = contract._replace(action_range=ActionRange(low, high))
    actions = np.array([[0.5, 0, 0, 0], [0, -0.2, 0.05, 0.2]], np.float32)
    reported = Actor(actor._policy, tight)._chunk(actions)
    assert reported.clipped == 3 and reported.actions is actions
    clipped = Actor(actor._policy, tight, clip=True)._chunk(actions)
    assert clipped.clipped == 3
    np.testing.assert_array_equal(clipped.actions, np.clip(actions, -0.1, 0.1).astype(np.float32))


def test_the_range_of_the_data(tiny):
    """q01 and q99, wider by a quarter; the gripper of the sample never moves."""
    within = tiny[1].action_range
    np.testing.assert_array_equal(within.high, np.float32([1.5, 1.5, 1.5, np.inf]))
    np.testing.assert_array_equal(within.low, np.float32([-1.5, -1.5, -1.5, -np.inf]))


def test_images_of_another_size_are_resized_as_in_training(policy):
    actor, contract = tiny_actor(image_size=(48, 80))
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3)).astype(np.uint8)
    settings = FAST._replace(buckets=(1,))
    with served(actor, contract, settings) as running, Robot(running.url) as robot:
        asked = observation(**{"observation/image": image})
        found = robot.ask(asked)["actions"]
        wrong = robot.ask(observation())
    np.testing.assert_allclose(found, acted(policy, [asked], [0], 1)[0], atol=1e-6)
    assert "expected uint8 RGB [48, 80, 3], got uint8 [64, 64, 3]" in wrong
