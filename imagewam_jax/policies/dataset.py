"""The dataset that a config speaks of, with the sizes that its model wants."""

from collections.abc import Mapping
from typing import Any

from imagewam_jax.data.dataset import Dataset, open_dataset


def config_dataset(config: Mapping[str, Any]) -> Dataset:
    """The dataset of a config. DataError: the two do not fit each other."""
    model = config["model"]
    return open_dataset(
        config["data"],
        horizon=model["horizon"],
        action_dim=model["expert"]["action_dim"],
        state_dim=model["proprio_dim"],
    )
