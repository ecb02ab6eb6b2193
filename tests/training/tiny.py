"""A run that compiles in seconds: a tiny policy on the episodes that ship with the project."""

import shutil
from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from imagewam_jax.config.defaults import defaults
from imagewam_jax.models.sharding import make_mesh
from imagewam_jax.training.train import train
from tests.shared_folder import shared

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data" / "metaworld_faucet" / "sample" / "metaworld_faucet" / "1.0.0"
INSTRUCTIONS = ("close the faucet", "open the faucet")


def copy_sample(folder: Path) -> Path:
    """The shipped dataset in a folder of the test, so that its index leaves the checkout clean."""
    without = shutil.ignore_patterns("imagewam_index")
    return Path(shutil.copytree(SAMPLE, folder / "metaworld_faucet" / "1.0.0", ignore=without))


def tiny_config(dataset: Path) -> ConfigDict:
    """One layer of each kind, 16 channels, chunks of 4 actions, batches of 4, float32."""
    config = defaults()
    config.data.directory = str(dataset)
    config.data.dataset = "metaworld_faucet"
    config.data.image_size = (64, 64)
    config.data.threads = 2
    config.data.prefetch = 2
    config.text.buckets = (20,)
    config.autoencoder = {"name": "patch", "factor": 16, "channels": 8, "weights": ""}
    config.model.backbone = {
        "name": "flux2",
        "in_channels": 8,
        "text_dim": 192,
        "dim": 16,
        "heads": 2,
        "double_layers": 1,
        "single_layers": 1,
        "mlp_ratio": 2.0,
        "rope_axes": (2, 2, 2, 2),
        "rope_theta": 100.0,
    }
    config.model.expert = {"action_dim": 4, "dim": 16, "mlp_ratio": 2.0, "max_horizon": 8}
    config.model.proprio_dim = 4
    config.model.horizon = 4
    config.train.steps = 8
    config.train.batch_size = 4
    config.train.compute_dtype = "float32"
    config.train.log_every = 1
    config.train.validate_every = 0
    config.train.checkpoint_every = 4
    config.optimizer.learning_rate = 1e-2
    config.acting = {"euler_steps": 2, "execute_steps": 4}
    return config


def one_device() -> Mesh:
    """The mesh of a run on the first device."""
    return make_mesh(defaults().mesh.to_dict(), jax.devices()[:1])


def trained_run() -> Path:
    """The folder of a finished run, which all tests share and must not change. Beside it is its
    dataset."""

    def make(folder: Path) -> None:
        config = tiny_config(copy_sample(folder))
        config.train.steps = 40
        config.train.validate_every = 10
        config.train.checkpoint_every = 20
        config.train.validation_samples = 40
        train(config, folder / "run")

    return shared("trained", make) / "run"
