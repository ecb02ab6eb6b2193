"""The official fine-tuning recipe on FLUX.2 klein (spec imagewam_flux2, 3.1, 7.2 and 8.1)."""

import dataclasses

from ml_collections import ConfigDict

from imagewam_jax.models.backbones.flux2 import KLEIN_4B, KLEIN_9B
from imagewam_jax.policies.config import choose
from imagewam_jax.training.defaults import defaults

KLEIN = {"4b": KLEIN_4B, "9b": KLEIN_9B}
PROMPT = "A video recorded from a robot's point of view executing the following instruction: {}"


def klein_recipe(size: str) -> ConfigDict:
    """What all official runs share; `size` is "4b" or "9b". ConfigError: another size."""
    backbone = choose(KLEIN, size, "the size of FLUX.2 klein")
    config = defaults()
    config.seed = 42
    config.text.template = PROMPT
    config.autoencoder = {
        "name": "flux2",
        "weights": "",
    }
    config.model.backbone = {"name": "flux2", **dataclasses.asdict(backbone)}
    # As the official code: positions, times and Euler steps in the dtype of the parameters.
    config.model.coordinate_dtype = "bfloat16"
    config.train.compute_dtype = "bfloat16"
    config.optimizer.ema_decay = 0.0  # no moving average
    return config
