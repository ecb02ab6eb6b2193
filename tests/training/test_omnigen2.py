"""A small policy on OmniGen2 through the commands: it trains, resumes, is evaluated and acts."""

import json
import shutil

import numpy as np
import pytest

from imagewam_jax import cli
from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.policy.policy import Observations, load_policy
from tests.training.tiny import INSTRUCTIONS, copy_sample

CONFIG = """
from tests.training.tiny import tiny_config

def get_config():
    config = tiny_config({dataset!r})
    config.autoencoder.channels = 12
    config.model.backbone = {{
        "name": "omnigen2",
        "in_channels": 12,
        "text_dim": 192,
        "dim": 24,
        "heads": 4,
        "kv_heads": 2,
        "layers": 2,
        "refiner_layers": 1,
        "mlp_dim": 32,
        "rope_axes": (2, 2, 2),
    }}
    return config
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of eight steps, of which the last four were run again."""
    folder = tmp_path_factory.mktemp("omnigen2")
    config = folder / "config.py"
    config.write_text(CONFIG.format(dataset=str(copy_sample(folder))))
    train = ["train", f"--config={config}", f"--workdir={folder / 'run'}"]
    assert cli.main(train) == 0
    shutil.rmtree(folder / "run" / "checkpoints" / "8")
    assert cli.main([*train, "--resume"]) == 0
    return folder / "run"


def test_its_loss_falls(run):
    rows = read_metrics(run / METRICS_FILE)
    losses = [row["target_loss"] for row in rows if "target_loss" in row]
    assert len(losses) == 8 and np.isfinite(losses).all()
    assert np.mean(losses[4:]) < np.mean(losses[:4])


def test_it_is_evaluated(run):
    assert cli.main(["evaluate", f"--checkpoint={run}", "--no-simulator", "--samples=8"]) == 0
    report = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert report["offline"]["metaworld_faucet"]["samples"] == 8


def test_it_acts_on_what_it_sees_and_is_told(run):
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
