"""What a small policy must do on any backbone, once it was trained through the commands."""

import json
from pathlib import Path

import numpy as np

from imagewam_jax import cli
from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.policy.policy import Observations, load_policy
from imagewam_jax.serving.acting import make_actor
from imagewam_jax.serving.settings import Settings
from tests.serving.robots import Robot, acted, observation, served
from tests.training.tiny import INSTRUCTIONS


def assert_loss_falls(run: Path) -> None:
    """Over a run of eight steps."""
    rows = read_metrics(run / METRICS_FILE)
    losses = [row["target_loss"] for row in rows if "target_loss" in row]
    assert len(losses) == 8 and np.isfinite(losses).all()
    assert np.mean(losses[4:]) < np.mean(losses[:4])


def assert_is_evaluated(run: Path) -> None:
    assert cli.main(["evaluate", f"--checkpoint={run}", "--no-simulator", "--samples=8"]) == 0
    report = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert report["offline"]["metaworld_faucet"]["samples"] == 8


def assert_acts_on_what_it_sees_and_is_told(run: Path) -> None:
    policy = load_policy(run)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1, 1, 64, 64, 3), np.uint8)
    noise = rng.standard_normal((1, policy.horizon, policy.action_dim), np.float32)

    def act(images, instruction):
        state = np.zeros((1, policy.state_dim))
        observations = Observations(images, state, policy.text_ids([instruction]))
        return policy.act(observations, noise)

    actions = act(images, INSTRUCTIONS[0])
    assert actions.shape == noise.shape and np.isfinite(actions).all()
    assert not np.array_equal(actions, act(255 - images, INSTRUCTIONS[0]))
    assert not np.array_equal(actions, act(images, INSTRUCTIONS[1]))


def assert_is_served(run: Path) -> None:
    """A robot gets the chunks of the policy."""
    actor, contract = make_actor(run, real_time="off")
    policy = load_policy(run)
    with served(actor, contract, Settings(port=0, rate=1e6, buckets=(1,))) as server:
        for seed in range(2):
            seen = observation(seed)
            with Robot(server.url) as robot:
                actions = robot.ask(seen)["actions"]
            np.testing.assert_array_equal(actions, acted(policy, [seen], [0], 1)[0])
