"""Robots that ask at the same time: who is in which batch, and who waits for whom."""

import concurrent.futures
import threading
import time

import numpy as np

from imagewam_jax.serving import batching
from tests.serving.robots import FAST, Robot, acted, observation, served
from tests.wire.frames import packed


def test_robots_that_ask_together_are_one_batch(server, policy):
    """Whoever asks, and in whatever order: each gets its own chunk, that of a batch of 8."""
    asked = [observation(seed) for seed in range(8)]
    barrier = threading.Barrier(8)

    def one(number):
        with Robot(server.url) as robot:
            replies = []
            for step in range(20):
                barrier.wait()
                replies.append(robot.ask(asked[number] | {"imagewam/step": step}))
            return replies

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(one, range(8)))
    rows = [reply["server_timing"]["batch_rows"] for robot in replies for reply in robot]
    assert max(rows) > 1
    alone = [acted(policy, asked, [step] * 8, 8) for step in range(20)]
    for number, robot in enumerate(replies):
        for step, reply in enumerate(robot):
            np.testing.assert_allclose(reply["actions"], alone[step][number], rtol=0, atol=1e-5)


def test_a_request_that_is_begun_too_late_is_dropped(slowed):
    actor, contract = slowed
    with served(actor, contract, FAST._replace(buckets=(1,))) as running:
        actor.seconds = 0.5
        with Robot(running.url) as first, Robot(running.url) as second:
            first.connection.send(packed(observation()))
            time.sleep(0.1)
            answer = second.ask(observation(**{"imagewam/deadline_ms": 50}))
            assert answer.startswith("DeadlineMissed: begun ")
            first.connection.recv()
            assert second.ask(observation(**{"imagewam/deadline_ms": 5000}))["actions"].size
        assert "imagewam_deadline_missed_total 1.0" in running.get("/metrics")


def test_the_earliest_deadline_is_first(slowed):
    actor, contract = slowed
    order = []
    with served(actor, contract, FAST._replace(buckets=(1,))) as running:
        actor.seconds = 0.3

        def ask(name, deadline):
            with Robot(running.url) as robot:
                robot.ask(observation(**({"imagewam/deadline_ms": deadline} if deadline else {})))
                order.append(name)

        threads = []
        for name, deadline in (("busy", 0), ("none", 0), ("late", 9000), ("early", 5000)):
            threads.append(threading.Thread(target=ask, args=(name, deadline)))
            threads[-1].start()
            time.sleep(0.06)
        for thread in threads:
            thread.join()
    assert order == ["busy", "early", "late", "none"]


def test_a_robot_does_not_wait_for_robots_that_are_silent(server):
    """One that asked once, and one that never did, cost the others 2 ms at most."""
    assert batching.GATHER_SECONDS == 0.002
    with Robot(server.url) as robot, Robot(server.url), Robot(server.url) as other:
        other.ask(observation())
        time.sleep(1.2)
        queue = [robot.ask(observation())["server_timing"]["queue_ms"] for _ in range(30)]
    assert np.median(queue) < 1.5
