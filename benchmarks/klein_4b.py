"""A config for timing training steps of FLUX.2 klein 4B without any weights or downloads.

The sample dataset with its image stretched to LIBERO's two cameras of 224 x 224, so that a step has
as many tokens as there: 392 of the target, 392 of the reference, 47 of text and one of the robot's
state, and 16 actions. Weights are random, text is encoded by bytes and the autoencoder is a patch
autoencoder of the same factor and channels; the backbone is trained with LoRA, which fits a GPU of
80 GB.
`--config=benchmarks/klein_4b.py:16` has a batch of 16.
"""

from ml_collections import ConfigDict

from imagewam_jax.config.defaults import klein_recipe


def get_config(batch_size: str = "16") -> ConfigDict:
    config = klein_recipe("4b")
    config.data.directory = "data/metaworld_faucet/sample/metaworld_faucet/1.0.0"
    config.data.dataset = "metaworld_faucet"
    config.data.image_size = (224, 448)
    config.text.encoder = "byte_qwen3"
    config.text.template = "{}"
    config.text.buckets = (47,)
    config.autoencoder = {"name": "patch", "factor": 16, "channels": 128, "weights": ""}
    config.model.backbone.text_dim = 192
    config.model.expert.action_dim = 4
    config.model.proprio_dim = 4
    config.model.lora = {"rank": 16, "alpha": 16.0}
    config.train.batch_size = int(batch_size)
    config.train.steps = 30
    config.train.log_every = 10
    config.train.validate_every = 0
    config.train.keep_checkpoints = 1
    return config
