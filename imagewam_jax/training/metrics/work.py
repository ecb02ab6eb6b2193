"""How much a training step has to do."""

import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from imagewam_jax.models.flops import training_step
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.preprocess.inputs import PolicyAssets, work_sizes
from imagewam_jax.training.chips import chip_of_kind
from imagewam_jax.training.metrics.window import Work
from imagewam_jax.training.state import trained_paths


def step_work(
    config: Mapping[str, Any], policy: ImageWAMConfig, assets: PolicyAssets, mesh: Mesh
) -> Work:
    """Of the policy alone: not of the autoencoder, nor of what is computed again or for padding.

    The peak is that of all devices of the mesh, where their kind is known.
    """
    data, train = config["data"], config["train"]
    # Cells of a latent depend on what images are brought to, not on how they are stored.
    images = (train["batch_size"], len(data["cameras"]), 2, *data["image_size"], 3)
    sizes = work_sizes(data, assets, images)
    trained = trained_paths(policy, train["frozen"])
    flops = training_step(policy, sizes, lambda path: ".".join(path) in trained)
    chip = chip_of_kind(mesh.devices.flat[0].device_kind)
    peak = chip.flops * math.prod(mesh.devices.shape) if chip else None
    return Work(train["batch_size"], flops.total, peak)
