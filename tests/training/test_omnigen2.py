"""A small policy on OmniGen2 through the commands: trained, resumed, evaluated, acting, served."""

import shutil

import pytest

from imagewam_jax import cli
from tests.training.backbone_runs import (
    assert_acts_on_what_it_sees_and_is_told,
    assert_is_evaluated,
    assert_is_served,
    assert_loss_falls,
)
from tests.training.tiny import copy_sample

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

pytestmark = pytest.mark.slow(minutes=1)


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
    assert_loss_falls(run)


def test_it_is_evaluated(run):
    assert_is_evaluated(run)


def test_it_acts_on_what_it_sees_and_is_told(run):
    assert_acts_on_what_it_sees_and_is_told(run)


def test_it_is_served(run):
    assert_is_served(run)
