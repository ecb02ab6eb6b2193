"""The autoencoder in a policy: what acting sees, and the image that was imagined."""

from collections.abc import Iterator

import numpy as np

from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.acting import SIGNATURE
from imagewam_jax.parity.cases.autoencoder import decode, encode
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output, nchw, nhwc
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded
from imagewam_jax.parity.cases.policy_case import (
    as_grid,
    as_tokens,
    grid_of,
    recorded_samples,
)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    model, io = loaded.module("autoencoder"), folder.need(*SIGNATURE)
    for prefix in recorded_samples(io):
        if f"{prefix}image" in io:
            latent, _ = encode(model, nhwc(io[f"{prefix}image"]))
            yield Output(f"{prefix}ref_tokens", as_tokens(latent), limits.AUTOENCODER)
    if "infer_video.latents_per_step" in io:
        last = io["infer_video.latents_per_step"][-1:]
        image = decode(model, as_grid(last, grid_of(io, "infer0.ref_img_ids")))[0]
        # The official policy clamps what it imagines; the autoencoder by itself does not.
        yield Output("infer_video.image", nchw(np.clip(image, -1, 1)), limits.AUTOENCODER)


KIND = Kind(
    name="images that it sees and imagines",
    part="autoencoder",
    file="infer.safetensors",
    find=lambda folder: folder.having("infer0.image") or folder.having("infer_video.image"),
    outputs=_outputs,
    inputs=lambda loaded, folder, sizes, rng: {} if "autoencoder" in loaded else None,
    case="policy",
)
