"""Training that starts from weights: converted ones, with the rest at random, or another run's."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from imagewam_jax.checkpoints.initial_weights import initial_weights
from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import CheckpointError
from imagewam_jax.models.parameters import flatten, unflatten
from imagewam_jax.training.train import train
from imagewam_jax.weights.checkpoint_writer import stream_of, write_streams
from imagewam_jax.weights.components import COMPONENTS
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.layouts.flux2 import flux2_rules
from imagewam_jax.weights.layouts.mapping import to_foreign
from tests.training.tiny import copy_sample, tiny_config, trained_run


def saved(run, tree: str = "params"):
    checkpoints, step = open_checkpoint(run)
    arrays = checkpoints.restore(step, {tree: checkpoints.abstract(step, tree)})[tree]
    metadata = checkpoints.restore_json(step, "metadata")
    checkpoints.close()
    return flatten(jax.tree.map(np.asarray, arrays)), metadata


def still(folder, weights):
    """A run of one step that changes nothing, so that its checkpoint is what it started from."""
    config = tiny_config(copy_sample(folder))
    config.train.initial_weights = str(weights)
    config.train.steps = config.train.checkpoint_every = 1
    config.optimizer.learning_rate = 0.0
    return config


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A transformer of the tiny policy's sizes in the original layout, converted, with first
    weights of an expert."""
    folder = tmp_path_factory.mktemp("converted")
    policy = policy_config(tiny_config("").to_dict()["model"])
    rng = np.random.default_rng(0)
    backbone = jax.tree.map(
        lambda x: rng.normal(size=x.shape).astype(np.float32),
        COMPONENTS["backbone"].abstract(policy.backbone),
    )
    save_file(to_foreign(flux2_rules(policy.backbone), backbone), folder / "flux2.safetensors")
    given = {
        "rope_axes": [2, 2, 2, 2],
        "rope_theta": 100.0,
        "expert_dim": policy.expert.dim,
        "expert_mlp_ratio": policy.expert.mlp_ratio,
    }
    convert([folder / "flux2.safetensors"], folder / "out", overrides=given, expert="official")
    return folder / "out"


def test_a_transformer_and_its_expert(converted, tmp_path, capsys):
    train(still(tmp_path, converted), tmp_path / "run")
    random = "expert.action_in, expert.head, proprio_in"
    assert f"starts from {converted}, at random: {random}" in capsys.readouterr().out
    params, metadata = saved(tmp_path / "run")
    source, _ = saved(converted)
    fresh = ("expert.action_in.", "expert.head.", "proprio_in.")
    assert {name for name in params if not name.startswith(fresh)} == set(source)
    for name, array in source.items():
        np.testing.assert_array_equal(params[name], array, err_msg=name)
    assert all(np.ptp(params[n]) > 0 for n in params if n.startswith(fresh))
    assert metadata["initial_weights"]["sources"][0]["file"] == "flux2.safetensors"
    assert metadata["initial_weights"]["expert"] == "official"


def test_the_average_of_another_run(tmp_path):
    train(still(tmp_path, trained_run()), tmp_path / "run")
    params, metadata = saved(tmp_path / "run")
    expected, _ = saved(trained_run(), "ema")
    assert params.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(params[name], array, err_msg=name)
    assert metadata["initial_weights"] == {"step": 40}


def test_weights_that_do_not_fit(converted):
    model = tiny_config("").to_dict()["model"]
    assert initial_weights(converted, policy_config(model)).random
    wider = {**model, "expert": {**model["expert"], "dim": 24}}
    message = r"out: expert\.\S+ is \(.*\), the config's policy has \("
    with pytest.raises(CheckpointError, match=message):
        initial_weights(converted, policy_config(wider))
    with pytest.raises(CheckpointError, match="no 'params' in it"):
        other = {"autoencoder": stream_of({"mean": np.zeros(3, np.float32)})}
        write_streams(converted.parent / "other", 0, other, {"config": {}})
        initial_weights(converted.parent / "other", policy_config(model))


@pytest.mark.parametrize("field, other", [("single_layers", 2), ("rope_theta", 2000.0)])
def test_a_backbone_of_other_sizes(converted, field, other):
    """Also where no array has another shape: the positions would mean something else."""
    model = tiny_config("").to_dict()["model"]
    changed = {**model, "backbone": {**model["backbone"], field: other}}
    with pytest.raises(CheckpointError, match=rf"{field}=.*asks for .*{field}={other}"):
        initial_weights(converted, policy_config(changed))


def test_what_no_array_shows_is_told():
    model = tiny_config("").to_dict()["model"]
    changed = policy_config({**model, "coordinate_dtype": "bfloat16"})
    told = initial_weights(trained_run(), changed).differences
    assert told == ("coordinate_dtype was 'float32', is 'bfloat16'",)
    assert initial_weights(trained_run(), policy_config(model)).differences == ()


def test_a_backbone_must_be_whole(converted, tmp_path):
    arrays, metadata = saved(converted)
    del arrays["backbone.text_in.kernel"]
    write_streams(tmp_path, 0, {"params": stream_of(unflatten(arrays))}, metadata)
    policy = policy_config(tiny_config("").to_dict()["model"])
    with pytest.raises(
        CheckpointError, match=r"lacks 1 arrays .*, such as backbone.text_in.kernel"
    ):
        initial_weights(tmp_path, policy)
