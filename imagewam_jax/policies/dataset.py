"""The datasets that a config speaks of, with the sizes that its model wants."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagewam_jax.data.dataset import Data, open_data
from imagewam_jax.data.registry import dataset_spec
from imagewam_jax.data.tfds_folder import read_tfds_folder
from imagewam_jax.policies.defaults import defaults


def config_data(config: Mapping[str, Any]) -> Data:
    """The datasets of a config. DataError: they do not fit it."""
    model = config["model"]
    return open_data(
        config["data"],
        horizon=model["horizon"],
        action_dim=model["expert"]["action_dim"],
        state_dim=model["proprio_dim"],
    )


def dataset_config(directory: Path, row: str | None = None) -> dict[str, Any]:
    """A config of one dataset as it is: all cameras and widths of its row in the registry, which by
    default has the dataset's name. DataError: there is no such row, or no dataset."""
    folder = read_tfds_folder(directory)
    spec, config = dataset_spec(row or folder.name), defaults().to_dict()
    config["data"] |= {
        "directory": str(directory),
        "dataset": spec.name,
        "cameras": tuple(role for role, _ in spec.cameras),
        "train_split": "train" if "train" in folder.splits else next(iter(folder.splits)),
        "unlabelled": "blank",
    }
    config["model"]["expert"]["action_dim"] = len(spec.action.dims)
    config["model"]["proprio_dim"] = len(spec.state.dims)
    return config
