"""The simulator pool: its numbering, its stops, and its errors."""

import time

import numpy as np
import pytest

from imagewam_jax.errors import ConfigError, SimulatorError
from imagewam_jax.evaluation.simulators import make_simulator
from imagewam_jax.evaluation.simulators.pool import SimulatorPool
from tests.evaluation.fake_simulator import NAME, FakeSimulator


@pytest.fixture(scope="module")
def pool():
    with SimulatorPool(NAME, num_simulators=5, num_workers=2, options={"side": 4}) as pool:
        yield pool


def forward(steps: int) -> np.ndarray:
    return np.ones((steps, 1), np.float32)


def test_each_simulator_gets_its_own_requests(pool):
    observations = pool.reset({i: ("forward", i) for i in (3, 0, 4, 1)})
    assert {i: o.state[0] for i, o in observations.items()} == {0: 0, 1: 1, 3: 3, 4: 4}
    assert observations[3].images_nhwc.shape == (2, 4, 4, 3)  # The option arrived.
    outcomes = pool.execute({4: forward(2), 1: -forward(3)})
    assert {i: o.observation.state[0] for i, o in outcomes.items()} == {4: 6, 1: -2}
    assert {i: o.steps for i, o in outcomes.items()} == {4: 2, 1: 3}
    assert not any(outcome.done for outcome in outcomes.values())


def test_spec_is_the_simulator_s(pool):
    assert pool.spec == FakeSimulator.spec


def test_an_episode_stops_at_success_within_a_chunk(pool):
    pool.reset({2: ("forward", 8)})
    outcome = pool.execute({2: forward(6)})[2]
    assert (outcome.success, outcome.done, outcome.steps) == (True, True, 2)
    assert outcome.observation.state[0] == 10


def test_an_episode_stops_at_the_step_limit(pool):
    pool.reset({2: ("backward", 0)})
    first = pool.execute({2: -forward(7)})[2]
    last = pool.execute({2: -forward(7)})[2]
    assert (first.done, first.steps) == (False, 7)
    assert (last.success, last.done, last.steps) == (False, True, 12)
    assert last.observation.state[0] == -12
    pool.reset({2: ("backward", 0)})
    assert pool.execute({2: forward(1)})[2].steps == 1


def test_the_option_max_steps_ends_episodes_earlier_and_never_later():
    with SimulatorPool(NAME, num_simulators=1, num_workers=1, options={"max_steps": 5}) as pool:
        assert set(pool.spec.max_steps.values()) == {5}
        pool.reset({0: ("backward", 0)})
        outcome = pool.execute({0: -forward(7)})[0]
        assert (outcome.success, outcome.done, outcome.steps) == (False, True, 5)
    with SimulatorPool(NAME, num_simulators=1, num_workers=1, options={"max_steps": 900}) as pool:
        assert pool.spec == FakeSimulator.spec


@pytest.mark.parametrize("steps", [0, -1, 2.0, "5", True])
def test_max_steps_that_are_no_number_of_steps_are_refused(steps):
    with pytest.raises(ConfigError, match=r"max_steps is .*, expected a whole number from 1"):
        SimulatorPool(NAME, num_simulators=1, num_workers=1, options={"max_steps": steps})


def test_only_the_last_action_of_a_chunk_looks(pool):
    pool.reset({2: ("looks", 0)})
    outcome = pool.execute({2: -forward(3)})[2]
    assert outcome.observation.instruction == "looked: [False, False, True]"
    pool.execute({2: -forward(7)})
    outcome = pool.execute({2: -forward(7)})[2]  # the limit of 12 steps ends this chunk
    assert outcome.observation.instruction.count("True") == 3
    assert outcome.observation.instruction.endswith("False, True]")


def test_the_pool_knows_what_each_simulator_holds(pool):
    pool.reset({0: ("forward", 0), 3: ("backward", 0)})
    pool.reset({0: ("modules", 0)})
    assert (pool.tasks[0], pool.tasks[3]) == ("modules", "backward")


def test_workers_import_no_large_library(pool):
    import jax  # noqa: F401 - what this process has imported must not reach the workers.

    assert pool.reset({0: ("modules", 0)})[0].instruction == "imported: []"


def test_unknown_simulator_numbers_are_refused(pool):
    with pytest.raises(ValueError, match=r"no simulators \[5\]: the pool has 5"):
        pool.reset({5: ("forward", 0)})


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("raise", r"worker 1 failed:\nTraceback[\s\S]*the fake simulator failed on purpose"),
        ("exit", r"worker 1 died \(exit status 3\).*\n.*the fake simulator's last words"),
        ("hang", r"worker 1 did not answer within 0.5 s"),
    ],
)
def test_a_worker_that_fails_ends_the_pool_with_its_reason(task, message):
    pool = SimulatorPool(NAME, num_simulators=2, num_workers=2)
    processes = [worker._process for worker in pool._workers]
    pool.reset({0: ("forward", 0), 1: (task, 0)})
    if task == "hang":
        pool._workers[1]._timeout_s = 0.5  # Not from the start: starting may take longer.
    started = time.monotonic()
    with pytest.raises(SimulatorError, match=message):
        pool.execute({0: forward(1), 1: forward(1)})
    assert time.monotonic() - started < 500  # The one that hangs sleeps for 1000.
    assert all(process.returncode is not None for process in processes)
    with pytest.raises(SimulatorError, match="the pool is closed"):
        pool.reset({0: ("forward", 0)})


def test_a_simulator_that_cannot_be_built_says_why():
    with pytest.raises(SimulatorError, match="unexpected keyword argument 'sides'"):
        SimulatorPool(NAME, num_simulators=1, num_workers=1, options={"sides": 4})


def test_a_simulator_that_asks_something_is_told():
    """As LIBERO's first import does; nobody would answer."""
    with pytest.raises(SimulatorError, match="asks something when it is first imported"):
        SimulatorPool(NAME, num_simulators=1, num_workers=1, options={"question": "where?"})


def test_an_unknown_simulator_is_named():
    with pytest.raises(ValueError, match="unknown simulator 'metawrld'; known: "):
        make_simulator("metawrld")


def test_closing_ends_the_processes():
    pool = SimulatorPool(NAME, num_simulators=3, num_workers=8)
    processes = [worker._process for worker in pool._workers]
    assert len(processes) == 3
    pool.close()
    pool.close()
    assert [process.returncode for process in processes] == [0, 0, 0]
