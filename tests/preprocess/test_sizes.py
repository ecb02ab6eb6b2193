"""The sizes that FLOPs are counted by: for the shipped recipes, and for cameras as references."""

import jax
import jax.numpy as jnp
import pytest

from imagewam_jax.checkpoints.assets import new_autoencoder
from imagewam_jax.config.loading import load_config
from imagewam_jax.models.flops import Sizes
from imagewam_jax.preprocess.inputs import PolicyAssets, work_sizes
from imagewam_jax.preprocess.normalization import Normalizer
from tests.training.tiny import ROOT


@pytest.mark.parametrize(
    ("config", "overrides", "stored", "grid", "references"),
    [
        ("libero.py:4b", [], (2, 2, 256, 256, 3), (14, 28), 1),
        ("robotwin.py:4b", [], (3, 2, 240, 320, 3), (18, 16), 1),
        ("quickstart.py", [], (1, 2, 64, 64, 3), (4, 4), 1),
        ("libero.py:4b", ["--config.data.layout=references"], (2, 1, 224, 224, 3), (14, 14), 2),
    ],
)
def test_sizes(config, overrides, stored, grid, references):
    config = load_config(str(ROOT / "configs" / config), overrides).to_dict()
    assets = jax.eval_shape(
        lambda: PolicyAssets(
            autoencoder=new_autoencoder(config["autoencoder"]),
            text=jnp.zeros((40, 64, 16)),
            text_length=jnp.zeros(40, jnp.int32),
            actions=Normalizer(jnp.zeros((1, 7)), jnp.zeros((1, 7))),
            state=Normalizer(jnp.zeros((1, 8)), jnp.zeros((1, 8))),
        )
    )
    found = work_sizes(config["data"], assets, (5, *stored))
    assert found == Sizes(5, 64, grid, grid, references)
