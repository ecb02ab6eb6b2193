"""Fine-tunes on RoboTwin 2.0, three cameras: `--config=configs/robotwin.py:4b`, `:9b`,
`:omnigen2` or `:ovis_u1`.

The official recipe (docs/spec/imagewam_flux2.md, 7.2 and 8.1; docs/spec/imagewam_omnigen2.md, 11;
docs/spec/imagewam_ovis_u1.md, 10) sees a head camera over two wrist cameras, one mosaic of 288 x
256. How many steps its 5 epochs are depends on the copy of the dataset; set `train.steps`.
"""

from ml_collections import ConfigDict

from imagewam_jax.config.defaults import recipe


def get_config(model: str = "4b") -> ConfigDict:
    config = recipe(model)
    config.data.dataset = "robotwin"
    config.data.train_split, config.data.eval_split = "train[:99%]", "train[99%:]"
    config.data.cameras = ("primary", "left_wrist", "right_wrist")
    config.data.layout = "compact_288x256"
    config.data.image_size = (240, 320)
    config.data.augmentation = "robotwin"
    config.data.normalization = "z-score"
    config.model.expert.action_dim = 14
    config.model.proprio_dim = 14
    # The official recipes give 16 samples per device for OmniGen2, 4 for Ovis-U1, and no number of
    # devices; 8 are assumed.
    config.train.batch_size = {"4b": 384, "9b": 64, "omnigen2": 128, "ovis_u1": 32}[model]
    config.train.checkpoint_every = 2500
    config.acting.execute_steps = 16
    return config
