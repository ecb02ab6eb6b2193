"""Which action is executed at each step, under delays that are simulated step by step."""

import numpy as np
import pytest

from imagewam_jax.client.chunks import AlignedChunks, EnsembledChunks

HORIZON = 16


def chunk(origin: int, number: int = 0, horizon: int = HORIZON) -> np.ndarray:
    """Actions that say of themselves for which step they are, and of which chunk."""
    steps = np.arange(origin, origin + horizon, dtype=np.float32)
    return np.stack([steps, np.full(horizon, number, np.float32)], axis=1)


@pytest.mark.parametrize("delay", range(9))
def test_an_action_is_executed_at_its_own_step(delay):
    """Whatever an answer takes: the actions whose time has passed are left out."""
    chunks, asked = AlignedChunks(), None
    chunks.add(chunk(0), 0)
    for step in range(200):
        for _ in range(2):  # an answer that comes, and a request that is answered at once
            if asked is not None and step - asked >= delay:
                chunks.add(chunk(asked), asked)
                asked = None
            if asked is None and len(chunks) <= 8:
                asked = step
        assert chunks.take()[0] == step and chunks.step == step + 1


def test_every_executed_action_is_of_the_newest_chunk_that_has_come():
    """With delays and losses at random; each chunk begins at or before the step it is used for."""
    rng = np.random.default_rng(0)
    chunks, asked, newest, missing = AlignedChunks(), None, None, 0
    for step in range(2000):
        if asked is None and rng.random() < 0.3:
            asked, comes = step, step + rng.integers(0, 9)
        if asked is not None and step >= comes:
            if rng.random() < 0.7:  # the others are lost
                chunks.add(chunk(asked, asked), asked)
                newest = asked
            asked = None
        action = chunks.take()
        if newest is not None and step < newest + HORIZON:
            assert action.tolist() == [step, newest]
        else:
            assert action is None
            missing += 1
            chunks.step += 1
    assert 0 < missing < 1000


def test_a_chunk_that_comes_when_its_time_has_passed():
    chunks = AlignedChunks()
    chunks.add(chunk(0), 0)
    for _ in range(HORIZON):
        chunks.take()
    chunks.add(chunk(0), 0)
    assert chunks.take() is None and chunks.step == HORIZON


def test_chunks_fade_into_each_other_where_that_is_allowed():
    chunks = AlignedChunks(blend=3, blend_dims=(1,))
    chunks.add(chunk(0, 0), 0)
    chunks.take()
    chunks.add(chunk(1, 8), 1)
    taken = np.stack([chunks.take() for _ in range(5)])
    np.testing.assert_array_equal(taken[:, 1], [2, 4, 6, 8, 8])
    np.testing.assert_array_equal(taken[:, 0], [1, 2, 3, 4, 5])


def test_the_ensemble_is_that_of_act():
    """exp(-0.01 i), the oldest chunk first; a gripper is that of the newest."""
    chunks = EnsembledChunks(newest_dims=(1,))
    values = [5.0, 1.0, 3.0]
    taken = []
    for origin, value in enumerate(values):
        actions = np.full((4, 2), value, np.float32)
        chunks.add(actions, origin)
        taken.append(chunks.take())
    weight = np.exp(-0.01 * np.arange(3))
    assert taken[2][0] == pytest.approx((weight * values).sum() / weight.sum(), rel=1e-6)
    assert [each[1] for each in taken] == values and taken[0].dtype == np.float32
    assert len(chunks) == 3
    for _ in range(3):
        last = chunks.take()
    assert last.tolist() == [3.0, 3.0] and chunks.take() is None


def test_an_ensemble_of_one_chunk_is_the_chunk():
    chunks = EnsembledChunks()
    chunks.add(chunk(0, 7), 0)
    np.testing.assert_array_equal(np.stack([chunks.take() for _ in range(HORIZON)]), chunk(0, 7))
