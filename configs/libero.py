"""Fine-tunes on LIBERO, two cameras side by side: `--config=configs/libero.py:4b`, `:9b` or
`:omnigen2`.

The official recipe (docs/spec/imagewam_flux2.md, 7.2 and 8.1; docs/spec/imagewam_omnigen2.md, 11)
on the four suites without idle steps, as RLDS: `data.directory` is the folder that holds
`libero_spatial_no_noops` and the others. How many steps the official 10 epochs are depends on the
copy; set `train.steps` to that of yours.
"""

from ml_collections import ConfigDict

from imagewam_jax.config.defaults import recipe


def get_config(model: str = "4b") -> ConfigDict:
    config = recipe(model)
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
    # Of OmniGen2 12 on each of 8 devices: officially only the first number is told.
    config.train.batch_size = {"4b": 80, "9b": 96, "omnigen2": 96}[model]
    config.train.steps = {"4b": 34_000, "9b": 28_000, "omnigen2": 28_000}[model]
    config.acting.execute_steps = {"4b": 12, "9b": 12, "omnigen2": 8}[model]
    return config
