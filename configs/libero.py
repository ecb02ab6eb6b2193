"""Fine-tunes on LIBERO, two cameras side by side: `--config=configs/libero.py:4b` or `:9b`.

The official recipe (docs/spec/imagewam_flux2.md, 7.2 and 8.1) on the four suites without idle
steps, as RLDS: `data.directory` is the folder that holds `libero_spatial_no_noops` and the others.
How many steps the official 10 epochs are depends on the copy; set `train.steps` to that of yours.
"""

from ml_collections import ConfigDict

from imagewam_jax.config.defaults import klein_recipe


def get_config(size: str = "4b") -> ConfigDict:
    config = klein_recipe(size)
    config.data.mixture = "libero"
    # The official recipe holds nothing out: validation episodes are trained on, too.
    config.data.eval_split = "train[98%:]"
    config.data.cameras = ("primary", "wrist")
    config.data.layout = "row"
    config.data.image_size = (224, 224)
    config.data.augmentation = "libero"
    config.data.normalization = "min/max"
    config.data.pool_statistics = True  # the four suites are one robot
    config.model.expert.action_dim = 7
    config.model.proprio_dim = 8
    config.train.batch_size = {"4b": 80, "9b": 96}[size]
    config.train.steps = {"4b": 34_000, "9b": 28_000}[size]
    config.acting.execute_steps = 12
    return config
