"""The datasets that a config speaks of, with the sizes that its model wants."""

from collections.abc import Mapping
from typing import Any

from imagewam_jax.data.dataset import Data, open_data


def config_data(config: Mapping[str, Any]) -> Data:
    """The datasets of a config. DataError: they do not fit it."""
    model = config["model"]
    return open_data(
        config["data"],
        horizon=model["horizon"],
        action_dim=model["expert"]["action_dim"],
        state_dim=model["proprio_dim"],
    )
