"""Chunks in real units that go on from what robots execute in the meantime."""

import jax
import numpy as np
import pytest

from imagewam_jax.errors import InputError
from imagewam_jax.policy.policy import Policy, load_policy
from imagewam_jax.policy.programs import compute_next_actions
from imagewam_jax.policy.real_time import (
    Previous,
    Running,
    longest_delay,
    offered_methods,
    stack_running,
)
from imagewam_jax.preprocess.inputs import Observations
from tests.training.tiny import INSTRUCTIONS, trained_run

BATCH, HORIZON, DIMS = 3, 4, 4


def with_delays(policy: Policy, max_delay: int) -> Policy:
    """The same policy, as one that was trained with delays."""
    config = {**policy.config, "train": {**policy.config["train"], "max_delay": max_delay}}
    metadata = {**policy.metadata, "config": config}
    return Policy(policy._model, policy._all_assets, metadata, policy.step)


@pytest.fixture(scope="module")
def policy():
    return with_delays(load_policy(trained_run()), 3)


@pytest.fixture(scope="module")
def case(policy):
    """Observations and noise of three robots, the first of which has no chunk yet."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 1, 64, 64, 3)).astype(np.uint8)
    state = rng.uniform(0, 0.5, (BATCH, 4)).astype(np.float32)
    seen = Observations(images, state, policy.text_ids([INSTRUCTIONS[i % 2] for i in range(BATCH)]))
    noise = rng.normal(size=(BATCH, HORIZON, DIMS)).astype(np.float32)
    # Far beyond the data: normalized, some are above 5, where normalized data is cut off.
    known = rng.normal(0, 8, (2, HORIZON, DIMS)).astype(np.float32)
    running = [None, Running(known[0, :3], 2, 1), Running(known[1], 3, 1)]
    return seen, noise, stack_running(running, HORIZON, DIMS)


def test_robots_in_rows(case):
    previous = case[2]
    assert previous.length.tolist() == [0, 3, 4] and previous.delay.tolist() == [0, 2, 3]
    assert previous.execute.tolist() == [HORIZON, 1, 1] and not previous.actions[1, 3:].any()
    assert all(each.dtype == np.int32 for each in previous[1:])


def test_a_trained_policy_gives_known_actions_back_bit_for_bit(policy, case):
    seen, noise, previous = case
    found = policy.act_real_time(seen, noise, previous, "trained")
    plain = policy.act(seen, noise)
    np.testing.assert_allclose(found[0], plain[0], atol=1e-6)
    for row, delay in ((1, 2), (2, 3)):
        np.testing.assert_array_equal(found[row, :delay], previous.actions[row, :delay])
        assert np.abs(found[row, delay:] - plain[row, delay:]).max() > 1e-3


def test_a_guided_policy_is_drawn_to_what_runs(policy, case):
    """A robot without a chunk gets the chunk of `act`, bit for bit."""
    seen, noise, _ = case
    plain = policy.act(seen, noise)
    running = [None, *(Running(chunk + np.float32(0.2), 2, 1) for chunk in plain[1:])]
    previous = stack_running(running, HORIZON, DIMS)
    found = policy.act_real_time(seen, noise, previous, "guided")
    np.testing.assert_array_equal(found[0], plain[0])
    before, after = (np.abs(each - previous.actions)[1:, :2] for each in (plain, found))
    assert after.mean() < 0.7 * before.mean()


def test_units_of_what_runs(policy):
    """What is normalized again is what was made real, beyond the clamp of data too."""
    units = jax.tree.map(np.asarray, policy._assets.actions.of(0))
    normalized = np.random.default_rng(0).normal(0, 8, (100, DIMS)).astype(np.float32)
    again = units.scaled(units.denormalize(normalized))
    np.testing.assert_allclose(again, normalized, rtol=1e-5, atol=1e-5)
    assert np.abs(units.normalize(units.denormalize(normalized))).max() == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delay": [1, 0, 0]}, "previous.delay: expected 0 to 0 in row 0, found 1"),
        ({"delay": [0, 2, -1]}, "previous.delay: expected 0 to 3 in row 2, found -1"),
        ({"execute": [1, 3, 1]}, "previous.delay: expected 0 to 1 in row 1, found 2"),
        ({"execute": [1, 1, 5]}, "previous.execute: expected 1 to 4 in row 2, found 5"),
        ({"length": [0, 5, 4]}, "previous.length: expected 0 to 4 in row 1, found 5"),
        ({"actions": np.full((3, 4, 4), np.nan)}, "previous.actions: expected finite numbers"),
        ({"actions": np.zeros((3, 2, 4))}, r"previous.actions: expected .* = \[3, 4, 4\], found"),
        ({"delay": [0.0, 1.0, 1.0]}, "previous.delay: expected whole numbers, found float64"),
    ],
)
def test_what_does_not_fit(policy, case, changes, message):
    seen, noise, previous = case
    with pytest.raises(InputError, match=message):
        policy.act_real_time(seen, noise, previous._replace(**changes), "trained")


def test_what_is_nothing_that_runs(policy, case):
    with pytest.raises(InputError, match=r"previous: expected Previous\(.*, found a tuple"):
        policy.act_real_time(*case[:2], tuple(case[2]), "trained")


def test_which_methods_a_policy_offers(policy, case):
    untrained = {"train": {}}  # of a run from before there were delays
    assert offered_methods(policy.config, 10) == ("trained", "guided", "identity")
    assert offered_methods(policy.config, 1) == ("trained",)
    assert offered_methods(untrained, 10) == ("guided", "identity")
    assert offered_methods(untrained, 1) == ()
    assert longest_delay(policy.config, 16, "trained") == 3
    assert longest_delay(policy.config, 16, "guided") == 15
    with pytest.raises(InputError, match=r"method: expected one of \['trained'\], found 'guided'"):
        policy.act_real_time(*case, "guided", euler_steps=1)
    shorter = with_delays(policy, 1)
    with pytest.raises(InputError, match=r"previous.delay: expected 0 to 1 in row 1, found 2"):
        shorter.act_real_time(*case, "trained")


def test_one_program_for_all_delays(policy, case):
    seen, noise, previous = case
    policy.act_real_time(seen, noise, previous, "trained")
    programs = compute_next_actions._cache_size()
    nothing = Previous(previous.actions, previous.length, 0 * previous.delay, previous.execute)
    policy.act_real_time(seen, noise, nothing, "trained")
    assert compute_next_actions._cache_size() == programs
