"""One action a step, from sources that are slow, late, wrong or gone."""

import threading
import time

import numpy as np
import pytest

from imagewam_jax.client.broker import HELD, ChunkBroker
from imagewam_jax.errors import ConfigError, RequestRefused, ServingError

HORIZON, HZ = 16, 50.0


class Source:
    """Chunks that say for which step each action is; `delays` are the seconds that answers take."""

    def __init__(self, delays=(0.0,), relative=(False, True)):
        self.metadata = {
            "action_horizon": HORIZON,
            "action_dim": 2,
            "execute_steps": 8,
            "control_hz": HZ,
            "action_relative": list(relative),
        }
        self.delays = list(delays)
        self.asked: list[dict] = []
        self.resets = 0
        self.failure: Exception | None = None
        self.threads: set[int] = set()

    def infer(self, request):
        self.threads.add(threading.get_ident())
        self.asked.append(request)
        time.sleep(self.delays[min(len(self.asked), len(self.delays)) - 1])
        if self.failure:
            raise self.failure
        steps = np.arange(HORIZON, dtype=np.float32) + request["imagewam/step"]
        return {"actions": np.stack([steps, np.ones(HORIZON, np.float32)], axis=1)}

    def reset(self):
        self.resets += 1

    def close(self):
        pass


def play(broker, steps, seconds=0.0):
    """Executes so many steps, each of so many seconds."""
    played = []
    for _ in range(steps):
        played.append(broker.infer({"prompt": "go"}))
        time.sleep(seconds)
    return played


@pytest.mark.parametrize("execute_steps", [1, 5, 16])
def test_sync_asks_after_so_many_steps(execute_steps):
    source = Source()
    broker = ChunkBroker(source, mode="sync", execute_steps=execute_steps)
    played = play(broker, 33)
    assert [each["actions"][0] for each in played] == list(range(33))
    asked = [request["imagewam/step"] for request in source.asked]
    assert asked == list(range(0, 33, execute_steps))
    broker.close()


def test_aligned_does_not_stall_and_is_never_late():
    """Answers take up to six steps of 20 ms: each action is executed at its own step, and no step
    waits for an answer but the first, and what is asked while the delay is not known."""
    rng = np.random.default_rng(0)
    source = Source([0.0, 0.0, 0.0, *rng.uniform(0.02, 0.11, 200)])
    broker = ChunkBroker(source, mode="aligned")
    stalls, played = [], []
    for _ in range(120):
        start = time.monotonic()
        played.append(broker.infer({"prompt": "go"}))
        stalls.append(time.monotonic() - start)
        time.sleep(0.02)
    assert [each["actions"][0] for each in played] == list(range(120))
    assert not any(each[HELD] for each in played)
    assert np.median(stalls) < 0.01 and broker.fallbacks == 0
    assert 1 <= broker.delay_steps <= 8 and len(source.threads) == 1
    broker.close()


def test_answers_that_take_longer_than_a_chunk_allows_are_waited_for():
    """That is counted, and the robot neither holds nor goes on blindly."""
    source = Source([0.0, 0.0, 0.0, 0.25])
    broker = ChunkBroker(source, mode="aligned")
    broker._turnarounds.append(0.3)  # 15 steps, of 8 that may pass
    assert broker.delay_steps == 15
    played = play(broker, 41)
    assert [each["actions"][0] for each in played] == list(range(41))
    assert [request["imagewam/step"] for request in source.asked] == list(range(0, 41, 8))
    assert broker.fallbacks == 6 and not broker.held
    broker.close()


def test_an_answer_that_is_on_its_way_when_the_source_becomes_slow_is_waited_for():
    source = Source([0.0, 0.5])
    broker = ChunkBroker(source, mode="aligned")
    play(broker, 9)  # the second request is on its way
    broker._turnarounds.append(0.3)
    played = play(broker, 15)
    assert [each["actions"][0] for each in played] == list(range(9, 24))
    assert not broker.held
    broker.close()


def offering(source, max_delay=5):
    """The source, as one whose chunks go on from what is executed."""
    source.metadata |= {"modes": ["sync", "aligned", "rtc_trained"], "max_delay": max_delay}
    return source


def test_what_is_executed_in_the_meantime_goes_with_the_request():
    """From the first action that was not executed at the observation; the first request, and any
    that is waited for, has nothing to go on from."""
    source = offering(Source())
    broker = ChunkBroker(source, mode="rtc_trained", control_hz=1.0)
    broker._turnarounds.append(3.5)
    for _ in range(40):
        play(broker, 1)
        if broker._asked:
            broker._asked.answer.result()
    first, *later = source.asked
    assert not any("imagewam/delay" in key or "prev" in key for key in first)
    assert [request["imagewam/step"] for request in later] == [8, 16, 24, 32]
    for request in later:
        step = request["imagewam/step"]
        left = request["imagewam/prev_actions"][:, 0]
        np.testing.assert_array_equal(left, np.arange(step, step + 8))
        assert request["imagewam/delay"] == 4 and request["imagewam/execute"] == 8
    broker.close()


def test_a_delay_beyond_what_the_policy_was_trained_with_is_waited_for():
    source = offering(Source())
    broker = ChunkBroker(source, mode="rtc_trained", control_hz=1.0)
    broker._turnarounds.append(5.5)  # aligned would go on: 8 may pass
    played = play(broker, 17)
    assert [each["actions"][0] for each in played] == list(range(17))
    assert broker.fallbacks == 3 and not broker.held
    assert not any("imagewam/prev_actions" in request for request in source.asked)
    broker.close()


def test_an_estimate_beyond_the_actions_that_are_left():
    """The delay is no more than they are: a source would refuse it."""
    source = offering(Source())
    broker = ChunkBroker(source, mode="rtc_trained", control_hz=1.0, refill_seconds=0.0)
    play(broker, 14)
    broker._turnarounds.append(4.5)
    play(broker, 1)
    broker._asked.answer.result()
    assert source.asked[-1]["imagewam/step"] == 14 and source.asked[-1]["imagewam/delay"] == 2
    broker.close()


def test_ensemble_asks_whenever_it_was_answered():
    source = Source([0.005])
    broker = ChunkBroker(source, mode="ensemble")
    played = play(broker, 40, 0.02)
    np.testing.assert_allclose([each["actions"][0] for each in played], range(40), atol=1e-4)
    assert len(source.asked) > 25
    broker.close()


def held_at(broker, expected, steps=5):
    """Every further step is held: absolute dimensions stay, displacements are 0."""
    for each in play(broker, steps):
        assert each[HELD] and each["actions"].tolist() == [expected, 0.0]
        assert each["actions"].dtype == np.float32


@pytest.mark.parametrize("failure", [ServingError("no reply"), RequestRefused("InternalError")])
def test_a_lost_source_is_held_until_the_reset(failure):
    source = Source()
    broker = ChunkBroker(source, mode="sync", execute_steps=4)
    play(broker, 4)
    source.failure = failure
    held_at(broker, 3.0)
    assert broker.held == str(failure)
    source.failure = None
    held_at(broker, 3.0)  # it stays so
    broker.reset()
    assert broker.infer({"prompt": "go"})["actions"].tolist() == [0.0, 1.0]
    assert source.resets == 1 and not broker.held
    broker.close()


def test_a_source_that_is_lost_in_the_background_is_held():
    """The actions that are left are of a world that was seen: they are not executed."""
    source = Source()
    broker = ChunkBroker(source, mode="aligned")
    play(broker, 4)
    source.failure = ServingError("gone")
    played = play(broker, 20, 0.005)
    last = max(each["actions"][0] for each in played if not each[HELD])
    held_at(broker, last)
    broker.close()


def test_an_answer_that_does_not_come_is_held():
    source = Source([0.0, 30 * 0.02])
    broker = ChunkBroker(source, mode="aligned")
    played = play(broker, 20, 0.001)
    assert [bool(each[HELD]) for each in played] == [False] * 16 + [True] * 4
    assert broker.held == "no action is left"
    held_at(broker, 15.0)
    broker.close()


def test_a_chunk_that_is_too_old_is_held():
    source = Source([0.0, 2.0])
    broker = ChunkBroker(source, mode="aligned", max_age_seconds=0.5)
    played = play(broker, 12, 0.1)
    assert not played[0][HELD] and "more than 0.5 s ago" in played[-1][HELD]
    broker.close()


def test_the_first_request_raises_what_is_wrong():
    """The robot has not moved: there is nothing to hold."""
    source = Source()
    source.failure = RequestRefused("InvalidObservation: prompt: expected a text, got nothing")
    broker = ChunkBroker(source)
    for _ in range(2):
        with pytest.raises(RequestRefused, match="expected a text"):
            broker.infer({})
    source.failure = None
    assert broker.infer({})["actions"].tolist() == [0.0, 1.0]
    broker.close()


@pytest.mark.parametrize(
    "actions", [np.zeros((4, 2), np.float32), np.full((HORIZON, 2), np.nan, np.float32), None]
)
def test_a_chunk_that_is_none_is_never_executed(actions):
    source = Source()
    broker = ChunkBroker(source, execute_steps=2)
    play(broker, 2)
    source.infer = lambda request: {"actions": actions}
    held_at(broker, 1.0)
    broker.close()


def test_what_was_asked_before_a_reset_is_not_executed_after_it():
    source = Source([0.0, 0.3, 0.0])
    broker = ChunkBroker(source, mode="aligned")
    play(broker, 9)  # the second request is on its way
    assert len(source.asked) == 2
    broker.reset()
    played = play(broker, 3)
    assert [each["actions"][0] for each in played] == [0, 1, 2]
    assert [request["imagewam/step"] for request in source.asked][-1] == 0
    broker.close()


def test_the_robot_may_draw_its_next_image_over_the_last():
    source = Source([0.0, 0.1])
    broker = ChunkBroker(source, mode="aligned", execute_steps=1)
    image = np.zeros((2, 2, 3), np.uint8)
    broker.infer({"image": image})
    broker.infer({"image": image})
    image[:] = 9
    time.sleep(0.2)
    assert not any(request["image"].any() for request in source.asked)
    broker.close()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"mode": "rtc"}, "mode is 'rtc'"),
        ({}, {"mode": "rtc_guided"}, r"mode is 'rtc_guided', the source offers \[\]"),
        ({"modes": ["sync"]}, {"mode": "rtc_trained"}, r"the source offers \['sync'\]"),
        ({}, {"execute_steps": 17}, "execute_steps is 17, expected 1 to 16"),
        ({}, {"execute_steps": 0}, "execute_steps is 0, expected 1 to 16"),
        ({}, {"control_hz": -1.0}, r"control_hz is -1\.0, expected more than 0"),
        ({"control_hz": None}, {"mode": "aligned"}, "control_hz: the mode 'aligned' needs it"),
        ({"action_relative": None}, {}, "relative: the source does not say"),
        ({}, {"relative": [True]}, "relative: 1 flags for 2 dimensions"),
    ],
)
def test_what_a_broker_must_know(changes, options, message):
    source = Source()
    source.metadata |= changes
    with pytest.raises(ConfigError, match=message):
        ChunkBroker(source, **options)
