"""A small policy on Ovis-U1 through the commands: it trains, is evaluated and acts.

Its text is a table of features for each instruction, as a stand-in for those of images."""

import json

import numpy as np
import pytest

from imagewam_jax import cli
from imagewam_jax.checkpoints.store import METRICS_FILE, open_checkpoint, read_metrics
from imagewam_jax.models.parameters import flatten
from imagewam_jax.policy.policy import Observations, load_policy
from imagewam_jax.text.tables import write_text_table
from tests.training.tiny import INSTRUCTIONS, copy_sample

CONFIG = """
from tests.training.tiny import tiny_config

def get_config():
    config = tiny_config({dataset!r})
    config.text.encoder = "ovis_u1"
    config.text.table = {table!r}
    config.autoencoder.channels = 12
    config.model.backbone = {{
        "name": "ovis_u1",
        "in_channels": 12,
        "text_dim": 16,
        "dim": 24,
        "heads": 2,
        "double_layers": 1,
        "single_layers": 1,
        "refiner_layers": 1,
        "mlp_ratio": 2.0,
        "refiner_mlp_ratio": 2.0,
        "rope_axes": (4, 4, 4),
    }}
    config.model.expert.dim = 24
    # Eight steps are few beside compiling them.
    config.train.compiler_options = (
        "xla_backend_optimization_level=0",
        "xla_llvm_disable_expensive_passes=True",
    )
    return config
"""

pytestmark = pytest.mark.slow(minutes=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of eight steps."""
    folder = tmp_path_factory.mktemp("ovis_u1")
    rng = np.random.default_rng(0)
    features = [rng.standard_normal((n, 16), np.float32) for n in (19, 20)]
    table = folder / "text.safetensors"
    write_text_table(table, INSTRUCTIONS, [19, 20], iter(features), 16, "ovis_u1(test)")
    config = folder / "config.py"
    config.write_text(CONFIG.format(dataset=str(copy_sample(folder)), table=str(table)))
    assert cli.main(["train", f"--config={config}", f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def test_its_loss_falls(run):
    rows = read_metrics(run / METRICS_FILE)
    losses = [row["target_loss"] for row in rows if "target_loss" in row]
    assert len(losses) == 8 and np.isfinite(losses).all()
    assert np.mean(losses[4:]) < np.mean(losses[:4])


def test_all_that_is_read_is_trained(run):
    """And nothing else: the text's part of the expert stays as it began."""
    params = []
    for step in (4, 8):
        checkpoints, step = open_checkpoint(run / "checkpoints" / str(step))
        abstract = {"params": checkpoints.abstract(step, "params")}
        params.append(flatten(checkpoints.restore(step, abstract)["params"]))
        checkpoints.close()
    same = {path for path, one in params[0].items() if np.array_equal(one, params[1][path])}
    unread = {path for path in params[0] if path.startswith("expert.double_layers.text.")}
    assert same == unread and len(unread) == 16


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
