"""Training on two datasets of different states at once, and acting in the units of either."""

import json

import numpy as np
import pytest

from imagewam_jax.data.datasets import config_data
from imagewam_jax.data.transforms import transform
from imagewam_jax.errors import CheckpointError
from imagewam_jax.policy.policy import load_policy
from imagewam_jax.preprocess.inputs import Observations
from imagewam_jax.training.train import train
from tests.training.tiny import INSTRUCTIONS, copy_sample, tiny_config

# The same recordings with half of the state and doubled actions.
HALF = {
    "like": "metaworld_faucet",
    "state": {"name": "plane", "dims": ("x", "y")},
    "state_keys": (),
    "transform": f"{__name__}:half",
}


@transform(version=1)
def half(steps, spec):
    return 2 * steps["action"], steps["observation/state"][:, :2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    first = copy_sample(folder)
    copy_sample(folder / "other").parent.rename(folder / "half")
    config = tiny_config(first)
    config.data.directory = str(folder)
    config.data.dataset = ""
    config.data.mixture = "both"
    config.data.mixtures = {
        "both": [
            {"dataset": "metaworld_faucet", "weight": 1.0},
            {"dataset": "half", "weight": 3.0},
        ]
    }
    config.data.rows = {"half": HALF}
    config.train.steps = 3
    config.train.validate_every = 3
    config.train.validation_samples = 4
    train(config, folder / "run")
    return folder / "run"


def test_the_policy_acts_in_the_units_of_either(run):
    with pytest.raises(CheckpointError, match=r"trained on \['metaworld_faucet', 'half'\]; say"):
        load_policy(run)
    one, other = (load_policy(run, dataset=name) for name in ("metaworld_faucet", "half"))
    (image,) = np.random.default_rng(0).integers(0, 256, (1, 1, 64, 64, 3)).astype(np.uint8)
    state = np.array([[0.1, 0.5, 0.0, 0.0]], np.float32)
    observations = Observations(image[None], state, one.text_ids(INSTRUCTIONS[:1]))
    noise = np.random.default_rng(1).standard_normal((1, 4, 4)).astype(np.float32)
    # The third and fourth dimension of the state matter to one of them alone.
    moved = observations._replace(state=state + np.array([0, 0, 0.2, 0.9], np.float32))
    assert np.abs(one.act(moved, noise) - one.act(observations, noise)).max() > 0
    statistics = one.metadata["statistics"]
    for name in ("min", "max", "mean"):
        np.testing.assert_allclose(
            statistics["half"]["action"][name],
            2 * np.array(statistics["metaworld_faucet"]["action"][name]),
        )
    assert other.metadata["datasets"] == ["metaworld_faucet", "half"]


def test_its_data_opens_again(run):
    """From what the checkpoint says, with the shares that it was trained on."""
    config = json.loads(json.dumps(load_policy(run, dataset="half").config))
    first, second = config_data(config).sources("train")
    assert (first.share, second.share) == (0.25, 0.75)
    batch = second.reader.read(second.start_frames[:2])
    assert batch["norm_id"].tolist() == [1, 1]
