"""Rotation tables of a transformer's positions, in each dtype that the official code makes them in.

It makes them in the dtype of the positions; a policy has those in the dtype of its parameters.
"""

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from imagewam_jax.models.backbones.flux2 import ACTION_TIME, REFERENCE_TIME, TARGET_TIME
from imagewam_jax.models.layers import rope_tables
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output, Sizes, having
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.layers import rotation_matrices
from imagewam_jax.parity.cases.loaded import Loaded

SIGNATURE = ("ids",)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """Where they were recorded of wider heads than the checkpoint's, all axes are equally wide, as
    those of the full-size models."""
    io, config = folder.need(*SIGNATURE), loaded.config("backbone")
    ids, pairs = io["ids"], config.head_dim // 2
    recorded = next((io.specs[name].shape[3] for name in io if name.startswith("pe_")), pairs)
    axes = config.rope_axes if recorded == pairs else (2 * recorded // 4,) * 4
    for ids_dtype, dtype, limit in (
        ("bfloat16", ml_dtypes.bfloat16, limits.EQUAL),
        ("float32", np.float32, limits.ROTATION),
        ("int64", np.float32, limits.ROTATION),
    ):
        tables = rotation_matrices(rope_tables(ids, axes, config.rope_theta, dtype))
        yield Output(f"pe_{ids_dtype}_ids", tables[:, None], limit)


def _inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Texts longer than bfloat16 can count, corners of images, and actions."""
    ids = [(0, 0, 0, n) for n in (0, 1, 7, 100, 255, 256, 257, 300, 511)]
    ids += [(t, i, j, 0) for t in (TARGET_TIME, REFERENCE_TIME) for i in (0, 13) for j in (0, 27)]
    ids += [(ACTION_TIME, step, 0, 0) for step in (0, 1, 15)]
    return {"ids": np.array([ids], np.int32)}


KIND = Kind(
    name="rotation tables",
    part="backbone",
    file="rope.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="transformer",
)
