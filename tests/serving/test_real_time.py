"""Requests whose chunks go on from what the robot executes, checked and answered."""

import numpy as np
import pytest

from imagewam_jax.errors import ConfigError, InputError, RequestRefused
from imagewam_jax.policy.policy import load_policy
from imagewam_jax.policy.real_time import Running, stack_running
from imagewam_jax.preprocess.inputs import Observations
from imagewam_jax.serving.acting import Actor
from imagewam_jax.serving.contract import RealTime, make_contract
from imagewam_jax.serving.in_process import InProcessPolicy
from imagewam_jax.serving.requests import read_request
from tests.policy.test_real_time import with_delays
from tests.serving.robots import FAST, Robot, observation, served
from tests.training.tiny import trained_run

HORIZON, DIMS = 4, 4
PREV, CHUNK, DELAY = "imagewam/prev_actions", "imagewam/prev_chunk", "imagewam/delay"
EXECUTE, EXECUTED = "imagewam/execute", "imagewam/executed"
LEFT = np.random.default_rng(0).uniform(-1, 1, (3, DIMS)).astype(np.float32)
GOES_ON = {PREV: LEFT, DELAY: 2, EXECUTE: 1}


@pytest.fixture(scope="module")
def policy():
    return with_delays(load_policy(trained_run()), 2)


@pytest.fixture(scope="module")
def contract(policy):
    return make_contract(policy, trained_run())


@pytest.fixture(scope="module")
def running_server(policy, contract):
    with served(Actor(policy, contract), contract, FAST._replace(buckets=(1,))) as server:
        yield server


def expected(policy, seen, running):
    """The chunk of `Policy.act_real_time` for an observation of step 0."""
    noise = np.random.default_rng([seen["imagewam/seed"], 0])
    noise = noise.standard_normal((1, HORIZON, DIMS), np.float32)
    observations = Observations(
        seen["observation/image"][None, None],
        seen["observation/state"][None],
        policy.text_ids([seen["prompt"]]),
    )
    previous = stack_running([running], HORIZON, DIMS)
    return policy.act_real_time(observations, noise, previous, "trained")[0]


def test_what_clients_are_told(policy, contract):
    assert contract.metadata["modes"] == ["sync", "ensemble", "aligned", "rtc_trained"]
    assert contract.metadata["max_delay"] == 2
    guided = make_contract(policy, trained_run(), real_time="identity")
    assert guided.metadata["modes"][-1] == "rtc_guided" and guided.metadata["max_delay"] == 3
    off = make_contract(policy, trained_run(), real_time="off")
    assert off.metadata["modes"][-1] == "aligned" and off.metadata["max_delay"] == 0
    untrained = with_delays(policy, 0)
    assert make_contract(untrained, trained_run()).real_time == RealTime("guided", 3)
    assert make_contract(untrained, trained_run(), euler_steps=1).real_time is None
    with pytest.raises(ConfigError, match=r"real_time is 'trained', expected one of \['guided', "):
        make_contract(untrained, trained_run(), real_time="trained")
    with pytest.raises(ConfigError, match=r"expected one of \['trained', 'off'\] .* 1 Euler"):
        make_contract(policy, trained_run(), euler_steps=1, real_time="guided")


def test_a_chunk_goes_on_from_actions_that_a_robot_sends(policy, running_server):
    with Robot(running_server.url) as robot:
        seen = observation(3)
        found = robot.ask(seen | GOES_ON | {"imagewam/step": 0})["actions"]
        plain = robot.ask(seen | {"imagewam/step": 0})["actions"]
    np.testing.assert_array_equal(found, expected(policy, seen, Running(LEFT, 2, 1)))
    np.testing.assert_array_equal(found[:2], LEFT[:2])
    assert np.abs(found[2:] - plain[2:]).max() > 1e-3
    page = running_server.get("/metrics")
    for line in (
        'imagewam_device_seconds_count{bucket="1",stage="act_real_time"}',
        'imagewam_compile_seconds{program="act_real_time_1"}',
    ):
        assert line in page


def test_a_chunk_goes_on_from_one_that_the_robot_was_sent(policy, running_server):
    with Robot(running_server.url) as robot:
        first = robot.ask(observation(0))
        named = {CHUNK: first["imagewam/chunk_id"], EXECUTED: 1, DELAY: 2, EXECUTE: 2}
        found = robot.ask(observation(1, **named, **{"imagewam/step": 0}))["actions"]
        left = Running(first["actions"][1:], 2, 2)
        np.testing.assert_array_equal(found, expected(policy, observation(1), left))
        unknown = robot.ask(observation(1, **(named | {CHUNK: 7})))
        robot.ask(observation(2, **{"imagewam/reset": True}))
        gone = robot.ask(observation(1, **named))
    of_episode = "imagewam/prev_chunk: expected one of the last chunks of this episode, "
    assert f"InvalidObservation: {of_episode}[0, 1], got 7" == unknown
    assert f"InvalidObservation: {of_episode}[2], got 0" == gone


@pytest.mark.slow
def test_robots_beside_each_other(policy, contract):
    """One that goes on, and one that does not, are in one batch what they are without the other."""
    actor = Actor(policy, contract)
    source = InProcessPolicy(actor, contract)
    rows = []
    for seed, more in ((3, GOES_ON), (4, {})):
        request = read_request(observation(seed) | more, contract)
        rows.append(source._sessions["robot"].row(request, 0)._replace(step=0))
    mixed = actor.act(rows, 2)
    alone = [actor.act([row, row], 2)[0] for row in rows]
    for together, one in zip(mixed, alone, strict=True):
        np.testing.assert_allclose(together.actions, one.actions, atol=2e-6)


def test_a_policy_in_this_process_answers_the_same(policy, contract, running_server):
    source = InProcessPolicy(Actor(policy, contract), contract)
    with Robot(running_server.url) as robot:
        for request in (
            observation(5),
            observation(6) | GOES_ON,
            observation(7, **{CHUNK: 1, EXECUTED: 3, DELAY: 1, EXECUTE: 3}),
        ):
            ours, theirs = source.infer(request), robot.ask(request)
            np.testing.assert_array_equal(ours["actions"], theirs["actions"])
    with pytest.raises(
        RequestRefused, match=r"prev_chunk: expected one of the last chunks .* got 9"
    ):
        source.infer(observation(7, **{CHUNK: 9, EXECUTED: 3, DELAY: 1, EXECUTE: 3}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({DELAY: 3}, r"imagewam/delay: .* from 0 to 2 \(max_delay\), got 3"),
        ({DELAY: -1}, r"imagewam/delay: .* from 0 to 2 \(max_delay\), got -1"),
        ({DELAY: None}, r"imagewam/delay: .* from 0 to 2 \(max_delay\), got None"),
        ({DELAY: True}, r"imagewam/delay: .* got True"),
        ({DELAY: 2, PREV: LEFT[:1]}, r"from 0 to 1 \(actions that are left\), got 2"),
        ({EXECUTE: 3}, r"imagewam/delay: .* 0 to 1 \(actions of a chunk that are not executed\)"),
        ({EXECUTE: None}, r"imagewam/delay: .* from 0 to 0 \(actions of a chunk that are not"),
        ({EXECUTE: 5}, r"imagewam/execute: .* from 1 to 4 \(of a chunk\), got 5"),
        ({EXECUTE: 0}, r"imagewam/execute: .* from 1 to 4 \(of a chunk\), got 0"),
        (
            {PREV: LEFT[:, :3]},
            r"prev_actions: expected numbers \[1 to 4, 4\], got float32 \[3, 3\]",
        ),
        ({PREV: LEFT[:0]}, r"prev_actions: expected numbers .*, got float32 \[0, 4\]"),
        ({PREV: np.zeros((5, 4))}, r"prev_actions: expected numbers .*, got float64 \[5, 4\]"),
        ({PREV: 1.0}, r"prev_actions: expected numbers .*, got a float"),
        ({PREV: LEFT * np.nan}, r"prev_actions: expected finite numbers, got nan"),
        ({CHUNK: 0}, r"prev_actions: expected it or imagewam/prev_chunk, got both"),
        ({PREV: None}, r"imagewam/delay: expected imagewam/prev_actions or .*, got neither"),
        ({PREV: None, CHUNK: 0}, r"imagewam/executed: .* from 0 to 3 \(of an unfinished .* None"),
        ({PREV: None, CHUNK: -1}, r"imagewam/prev_chunk: expected a whole number from 0, got -1"),
        ({PREV: None, CHUNK: 0, EXECUTED: 3}, r"from 0 to 1 \(actions that are left\), got 2"),
    ],
)
def test_requests_that_do_not_fit(contract, changes, message):
    with pytest.raises(InputError, match=message):
        read_request(observation() | GOES_ON | changes, contract)


def test_a_policy_that_does_not_go_on(policy):
    off = make_contract(policy, trained_run(), real_time="off")
    with pytest.raises(
        InputError, match=r"prev_actions: expected none, since the modes .* aligned"
    ):
        read_request(observation() | GOES_ON, off)
