"""Datasets without a robot state: a policy that sees none, and one that sees that of another."""

import json

import jax
import numpy as np
import pytest

from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.config.schema import policy_config
from imagewam_jax.data.datasets import config_data
from imagewam_jax.data.statistics.exact import statistics_by_dataset
from imagewam_jax.errors import ConfigError
from imagewam_jax.models.parameters import flatten
from imagewam_jax.policy.policy import load_policy
from imagewam_jax.preprocess.inputs import Observations
from imagewam_jax.training.train import train
from tests.training.tiny import INSTRUCTIONS, copy_sample, tiny_config

NO_STATE = {"like": "metaworld_faucet", "state": "none", "state_keys": ()}


def stateless(dataset):
    config = tiny_config(dataset)
    config.data.dataset = "blind"
    config.data.rows = {"blind": NO_STATE}
    config.model.proprio_dim = 0
    config.train.validate_every = 4
    config.train.validation_samples = 4
    return config


@pytest.mark.slow(minutes=1)
def test_it_trains_resumes_and_acts(tmp_path):
    """Halfway and resumed, it is number for number the run that was not."""
    config = stateless(copy_sample(tmp_path))
    train(config, tmp_path / "run")
    last = arrays(tmp_path / "run", 8)
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "8").rename(tmp_path / "8")
    train(config, tmp_path / "run", resume=True)
    for (path, a), b in zip(
        flatten(last).items(), jax.tree.leaves(arrays(tmp_path / "run", 8)), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=path)
    assert not [path for path in flatten(last) if "proprio" in path]

    policy = load_policy(tmp_path / "run")
    (image,) = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64, 3)).astype(np.uint8)
    noise = np.random.default_rng(1).standard_normal((1, 4, 4)).astype(np.float32)
    state = np.zeros((1, 0), np.float32)
    observations = Observations(image[None], state, policy.text_ids(INSTRUCTIONS[:1]))
    actions = policy.act(observations, noise)
    assert actions.shape == (1, 4, 4) and np.isfinite(actions).all()
    assert policy.metadata["statistics"]["blind"]["state"]["mean"] == []


def arrays(run, step):
    checkpoints, _ = open_checkpoint(run / "checkpoints" / str(step))
    found = checkpoints.restore(step, {"params": checkpoints.abstract(step, "params")})["params"]
    checkpoints.close()
    return found


def test_in_a_mixture_its_state_is_zeros(tmp_path):
    first = copy_sample(tmp_path)
    copy_sample(tmp_path / "other").parent.rename(tmp_path / "blind")
    config = stateless(first)
    config.model.proprio_dim = 4
    config.data.directory, config.data.dataset, config.data.mixture = str(tmp_path), "", "both"
    config.data.mixtures = {
        "both": [
            {"dataset": "blind", "weight": 1.0},
            {"dataset": "metaworld_faucet", "weight": 1.0},
        ]
    }
    data = config_data(json.loads(config.to_json()))
    blind, other = (s.reader.read(s.start_frames[:3])["proprio"] for s in data.sources("train"))
    np.testing.assert_array_equal(blind, np.zeros((3, 4), np.float32))
    assert np.abs(other).max() > 0
    statistics = statistics_by_dataset(data, "train", pooled=False)
    assert statistics["blind"]["state"]["min"].shape == (0,)


@pytest.mark.parametrize("width", [0, None])
def test_a_policy_without_a_state_has_no_embedding_of_it(width):
    model = tiny_config("").model.to_dict()
    assert policy_config(model | {"proprio_dim": width}).proprio_dim is None
    with pytest.raises(ConfigError, match=r"model\.expert\.action_dim is 0, expected at least 1"):
        policy_config(model | {"expert": model["expert"] | {"action_dim": 0}})
