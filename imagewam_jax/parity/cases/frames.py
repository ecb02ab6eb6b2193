"""The autoencoder in a policy: frames of a training step to its latents."""

from collections.abc import Iterator

import numpy as np

from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.autoencoder import encode
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output, Sizes, having, nhwc
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import as_tokens

SIGNATURE = ("video",)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    model, video = loaded.module("autoencoder"), folder.need(*SIGNATURE)["video"]
    for name, frame in (("ref_image_latents", 0), ("target_latent", -1)):
        latent, _ = encode(model, nhwc(video[:, :, frame]))
        yield Output(name, as_tokens(latent), limits.AUTOENCODER)


def _inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray] | None:
    """Two frames of noise; none without an autoencoder."""
    if "autoencoder" not in loaded:
        return None
    factor = loaded.config("autoencoder").factor
    rows, columns = sizes.grid
    shape = (sizes.batch, 3, 2, factor * rows, factor * columns)
    return {"video": rng.uniform(-1, 1, shape).astype(np.float32)}


KIND = Kind(
    name="frames of that step",
    part="autoencoder",
    file="train.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="policy",
)
