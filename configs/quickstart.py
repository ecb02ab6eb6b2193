"""Trains a small FLUX.2-shaped policy on 64 x 64 images, in minutes on two CPU cores.

It runs the same code as the 4B preset; only the sizes differ. A copy of it is where a config for
other data begins: `data` and the widths of action and state change.
"""

from ml_collections import ConfigDict

from imagewam_jax.config.defaults import defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.data.directory = "runs/rlds/metaworld_faucet/1.0.0"
    config.data.dataset = "metaworld_faucet"
    config.data.image_size = (64, 64)
    # The demo's instructions fit in 20 bytes; longer ones take the next size that holds them.
    config.text.buckets = (20, *config.text.buckets)
    config.autoencoder = {"name": "patch", "factor": 16, "channels": 64, "weights": ""}
    config.model.backbone = {
        "name": "flux2",
        "in_channels": 64,
        "text_dim": 192,
        "dim": 128,
        "heads": 4,
        "double_layers": 2,
        "single_layers": 4,
        "mlp_ratio": 2.0,
        "rope_axes": (4, 12, 12, 4),
        "rope_theta": 100.0,  # a 4 x 4 grid needs no long wavelengths
    }
    config.model.expert = {"action_dim": 4, "dim": 64, "mlp_ratio": 4.0, "max_horizon": 16}
    config.model.proprio_dim = 4
    # So few layers and samples fit in memory, where a scan would copy what the backward pass needs.
    config.model.remat = "none"
    config.model.unroll = 4
    config.train.steps = 1200
    config.train.batch_size = 64
    config.train.compute_dtype = "float32"
    config.train.checkpoint_every = 500
    config.train.validate_every = 250
    config.optimizer.learning_rate = 1e-3
    config.optimizer.ema_decay = 0.995
    config.acting.execute_steps = 4
    # It plays the demo's dataset: policies of others are evaluated on recorded data alone.
    config.evaluation = {"simulator": "metaworld_faucet", "options": {"image_side": 64}}
    return config
