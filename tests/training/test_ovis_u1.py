"""A small policy on Ovis-U1 through the commands: it trains, is evaluated, acts and is served.

Its text is a table of features for each instruction, as a stand-in for those of images."""

import numpy as np
import pytest

from imagewam_jax import cli
from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.models.parameters import flatten
from imagewam_jax.text.tables import write_text_table
from tests.training.backbone_runs import (
    assert_acts_on_what_it_sees_and_is_told,
    assert_is_evaluated,
    assert_is_served,
    assert_loss_falls,
)
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
    assert_loss_falls(run)


def test_it_is_evaluated(run):
    assert_is_evaluated(run)


def test_it_acts_on_what_it_sees_and_is_told(run):
    assert_acts_on_what_it_sees_and_is_told(run)


def test_it_is_served(run):
    assert_is_served(run)


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
