"""The official recipe on FLUX.2 klein (docs/spec/imagewam_flux2.md, 3.1, 7.2 and 8.1)."""

import dataclasses

from ml_collections import ConfigDict

from imagewam_jax.config.defaults import defaults
from imagewam_jax.config.schema import choose
from imagewam_jax.models.backbones.flux2 import KLEIN_4B, KLEIN_9B

KLEIN = {"4b": KLEIN_4B, "9b": KLEIN_9B}
PROMPT = "A video recorded from a robot's point of view executing the following instruction: {}"


def klein_recipe(size: str) -> ConfigDict:
    """The official recipe; `size` is "4b" or "9b". ConfigError: another size."""
    config = official_recipe()
    backbone = choose(KLEIN, size, "the size of FLUX.2 klein")
    config.model.backbone = {"name": "flux2", **dataclasses.asdict(backbone)}
    return config


def official_recipe() -> ConfigDict:
    """What all official runs share, whatever their backbone."""
    config = defaults()
    config.seed = 42
    config.text.encoder = "qwen3"
    config.text.template = PROMPT
    config.autoencoder = {
        "name": "flux2",
        "weights": "",
    }
    # As the official code: positions, times and Euler steps in the dtype of the parameters.
    config.model.coordinate_dtype = "bfloat16"
    config.train.compute_dtype = "bfloat16"
    config.optimizer.ema_decay = 0.0  # no moving average
    return config
