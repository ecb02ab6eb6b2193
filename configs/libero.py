"""Fine-tunes on LIBERO, two cameras side by side: `--config=configs/libero.py:4b`, `:9b`,
`:omnigen2` or `:ovis_u1`.

The official recipe (docs/spec/imagewam_flux2.md, 7.2 and 8.1; docs/spec/imagewam_omnigen2.md, 11;
docs/spec/imagewam_ovis_u1.md, 10) on the four suites without idle steps, as RLDS: `data.directory`
is the folder that holds `libero_spatial_no_noops` and the others. How many steps the official 10
epochs are depends on the copy; set `train.steps` to that of yours.

`:tiny` is the same recipe in sizes that two CPU cores train in minutes, on the demonstrations of
`libero_goal` tasks that data/libero makes. Its weights were never released: tiny_networks/make.py
makes them (docs/libero.md).
"""

from ml_collections import ConfigDict

from imagewam_jax.config.defaults import recipe
from imagewam_jax.config.schema import choose

# The official recipes give 12 samples per device for OmniGen2, 16 for Ovis-U1, and no number of
# devices; 8 are assumed.
BATCH_SIZE = {"4b": 80, "9b": 96, "omnigen2": 96, "ovis_u1": 128, "tiny": 32}
STEPS = {"4b": 34_000, "9b": 28_000, "omnigen2": 28_000, "ovis_u1": 21_000, "tiny": 1_600}
EXECUTE_STEPS = {"4b": 12, "9b": 12, "omnigen2": 8, "ovis_u1": 8, "tiny": 12}
CHECKPOINT_EVERY = {"ovis_u1": 2500}


def get_config(model: str = "4b") -> ConfigDict:
    steps = choose(STEPS, model, "the model of the recipe")
    config = recipe("4b" if model == "tiny" else model)
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
    config.train.batch_size = BATCH_SIZE[model]
    config.train.steps = steps
    config.train.checkpoint_every = CHECKPOINT_EVERY.get(model, config.train.checkpoint_every)
    config.acting.execute_steps = EXECUTE_STEPS[model]
    if model == "tiny":
        _shrink(config)
    return config


def _shrink(config: ConfigDict) -> None:
    """Brings the recipe to the size of two CPU cores. Only what follows differs from 4b."""
    config.data.mixture = ""
    config.data.dataset = "libero_goal_no_noops"
    config.data.image_size = (64, 64)
    config.autoencoder.update(
        {"width": 32, "width_multipliers": (1, 1, 2, 2), "blocks": 1, "latent_channels": 16}
    )
    config.model.backbone.update(
        {
            "in_channels": 64,
            "text_dim": 192,
            "dim": 128,
            "heads": 4,
            "double_layers": 2,
            "single_layers": 4,
            "rope_axes": (8, 8, 8, 8),
        }
    )
    config.model.expert.dim = 64
    # Weights that were not pretrained, and are narrow, take larger steps.
    config.optimizer.learning_rate = 1e-3
    config.train.checkpoint_every = 400
    config.evaluation.simulator = "libero"
    config.evaluation.options = {"suites": ("libero_goal",), "tasks": (1, 8), "starts": "wide"}
