"""The faucet simulator, with real physics and rendering, always in other processes."""

import subprocess
import sys

import numpy as np
import pytest

from imagewam_jax.evaluation.rollout import random_policy, rollout
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from tests.evaluation.opengl import require_metaworld

OPEN, CLOSE = "faucet-open", "faucet-close"


@pytest.fixture(scope="module")
def pool():
    require_metaworld()
    with SimulatorPool("metaworld_faucet", num_simulators=3, num_workers=2) as pool:
        yield pool


def test_both_tasks_start_the_same_and_only_the_instruction_differs(pool):
    for seed in range(5):
        starts = pool.reset({0: (OPEN, seed), 1: (CLOSE, seed), 2: (OPEN, seed + 1)})
        np.testing.assert_array_equal(starts[0].images_nhwc, starts[1].images_nhwc)
        np.testing.assert_array_equal(starts[0].state, starts[1].state)
        assert not np.array_equal(starts[0].images_nhwc, starts[2].images_nhwc)
        # The faucet has moved, and the state must not tell.
        np.testing.assert_array_equal(starts[0].state, starts[2].state)
    assert starts[0].instruction == "open the faucet"
    assert starts[1].instruction == "close the faucet"


def test_observations_have_the_stated_form(pool):
    observation = pool.reset({0: (OPEN, 0)})[0]
    assert observation.images_nhwc.shape == (1, 64, 64, 3)
    assert observation.images_nhwc.dtype == np.uint8
    assert observation.images_nhwc.std() > 20  # Something was drawn.
    assert observation.state.shape == (4,) and observation.state.dtype == np.float32
    assert len(pool.spec.state_names) == 4 and pool.spec.action_dim == 4


def test_a_seed_repeats_an_episode_whatever_came_before(pool):
    actions = np.random.default_rng(0).uniform(-1, 1, (40, 4)).astype(np.float32)
    pool.reset({0: (OPEN, 7), 1: (CLOSE, 1)})
    first = pool.execute({0: actions, 1: actions[::-1]})[0]
    pool.reset({1: (OPEN, 7), 0: (CLOSE, 2)})
    again = pool.execute({1: actions, 0: actions})[1]
    np.testing.assert_array_equal(first.observation.images_nhwc, again.observation.images_nhwc)
    np.testing.assert_array_equal(first.observation.state, again.observation.state)


def test_actions_move_the_hand_and_are_clipped(pool):
    up = np.tile(np.float32([0, 0, 1, 0]), (10, 1))
    start = pool.reset({0: (OPEN, 0), 1: (OPEN, 0)})[0].state
    outcomes = pool.execute({0: up, 1: 5 * up})
    assert outcomes[0].observation.state[2] > start[2] + 0.03
    np.testing.assert_array_equal(outcomes[0].observation.state, outcomes[1].observation.state)


def test_random_actions_do_not_turn_the_faucet(pool):
    episodes = [(task, seed) for seed in range(3) for task in (OPEN, CLOSE)]
    result = rollout(pool, random_policy(pool.spec, 10), episodes, execute_steps=10)
    assert not result.success.any()
    assert (result.steps == 150).all()


PROGRAM = """
import sys
import numpy as np
from imagewam_jax.evaluation.simulators import make_simulator

simulator = make_simulator("metaworld_faucet", image_side=96)
print(simulator.reset("faucet-open", 0).images_nhwc.shape)
print({"jax", "tensorflow", "torch"} & set(sys.modules))
for call in (
    lambda: simulator.step(np.zeros(3), look=True),
    lambda: simulator.step(np.array([0, 0, np.nan, 0]), look=True),
    lambda: simulator.reset("faucet-twist", 0),
):
    try:
        call()
    except ValueError as error:
        print(error)
"""


def test_one_simulator_in_a_process_of_its_own():
    require_metaworld()
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "(1, 96, 96, 3)",
        "set()",  # None of the large libraries.
        "an action must be 4 finite numbers, found array([0., 0., 0.], dtype=float32)",
        "an action must be 4 finite numbers, found array([ 0.,  0., nan,  0.], dtype=float32)",
        "unknown task 'faucet-twist'; known: faucet-open, faucet-close",
    ]
