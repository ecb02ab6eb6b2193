"""The work of a step, from the config of a run."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.checkpoints.assets import new_autoencoder
from imagewam_jax.config.schema import policy_config
from imagewam_jax.models.flops import Sizes, training_step
from imagewam_jax.preprocess.inputs import PolicyAssets
from imagewam_jax.training.metrics.work import step_work
from tests.training.tiny import one_device, tiny_config


@pytest.fixture
def run(tmp_path):
    """The config of a run and its policy assets."""
    config = tiny_config(tmp_path).to_dict()
    autoencoder = new_autoencoder(config["autoencoder"])
    text = jnp.zeros((2, 20, 192))
    return config, PolicyAssets(autoencoder, text, jnp.zeros(2, jnp.int32), None, None)


def test_flops_are_those_of_the_images_and_texts_of_the_run(run):
    config, assets = run
    config["train"]["batch_size"] = 6
    policy = policy_config(config["model"])
    work = step_work(config, policy, assets, one_device())
    sizes = Sizes(6, text_tokens=20, target_grid=(4, 4), reference_grid=(4, 4), references=1)
    assert work.samples == 6
    assert work.flops == training_step(policy, sizes).total
    assert work.peak_flops is None  # of a CPU none is known


def test_what_is_frozen_needs_fewer(run):
    config, assets = run
    policy = policy_config(config["model"])
    all_of_it = step_work(config, policy, assets, one_device()).flops
    config["train"]["frozen"] = ("backbone",)
    assert 0.6 * all_of_it < step_work(config, policy, assets, one_device()).flops < all_of_it


def test_the_peak_is_that_of_all_devices(run):
    config, assets = run
    devices = [SimpleNamespace(device_kind="TPU v5p") for _ in range(8)]
    mesh = SimpleNamespace(devices=np.array(devices).reshape(2, 4))
    work = step_work(config, policy_config(config["model"]), assets, mesh)
    assert work.peak_flops == 8 * 459e12
