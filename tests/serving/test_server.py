"""What a server tells a robot, and answers: chunks that are those of the policy."""

import numpy as np

from tests.serving.robots import Robot, acted, observation
from tests.training.tiny import INSTRUCTIONS


def test_a_chunk_is_that_of_the_policy(server, policy):
    """Bit for bit, with the noise of the request's seed and step; steps are counted."""
    with Robot(server.url) as robot:
        for step in (0, 1, 7, 8):
            asked = observation(3, **({"imagewam/step": 7} if step == 7 else {}))
            reply = robot.ask(asked)
            np.testing.assert_array_equal(reply["actions"], acted(policy, [asked], [step], 1)[0])
            assert reply["actions"].dtype == np.float32
        assert reply["imagewam/chunk_id"] == 3 and type(reply["imagewam/clipped"]) is int
        timing = reply["server_timing"]
        assert set(timing) == {"infer_ms", "prev_total_ms", "queue_ms", "batch_rows", "bucket"}
        assert all(type(value) in (int, float) for value in timing.values())


def test_the_metadata(server, policy):
    with Robot(server.url) as robot:
        about = robot.metadata
    assert about["protocol"] == 1 and about["action_horizon"] == policy.horizon == 4
    assert about["image_resolution"] == {"observation/image": [64, 64]}
    assert (about["state_dim"], about["action_dim"]) == (4, 4)
    assert about["instructions"] == list(INSTRUCTIONS) and about["any_instruction"] is False
    assert about["action_names"] == ["x", "y", "z", "gripper"]
    assert about["action_relative"] == [True, True, True, False] and about["control_hz"] == 80.0
    assert len(about["policy_hash"]) == 16 and about["checkpoint_step"] == 40


def test_sessions_of_one_connection(server, policy):
    """Each counts its own steps; a reset begins again, in RoboArena's words too."""
    with Robot(server.url) as robot:

        def step_of(**changes):
            asked = observation(2, **changes)
            actions = robot.ask(asked)["actions"]
            chunks = [acted(policy, [asked], [step], 1)[0] for step in range(3)]
            return [np.array_equal(actions, chunk) for chunk in chunks].index(True)

        assert [step_of(), step_of(), step_of(**{"imagewam/session": "left"})] == [0, 1, 0]
        assert step_of(**{"session_id": "left", "endpoint": "infer"}) == 1
        assert step_of(**{"imagewam/reset": True}) == 0
        reset = robot.ask({"endpoint": "reset", "session_id": "left"})
        assert reset == {"status": "reset successful"}
        assert [step_of(**{"imagewam/session": "left"}), step_of()] == [0, 1]
    with Robot(server.url) as robot:
        assert step_of() == 0


def test_an_observation_that_asks_for_nothing(server):
    with Robot(server.url) as robot:
        assert robot.ask(observation(**{"imagewam/observe": True})) == {}
