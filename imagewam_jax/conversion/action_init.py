"""First weights of the action expert, made from FLUX.2 weights (spec imagewam_flux2, 4.3).

Both sides are in the original layout. The official recipe resizes fused matrices as one, so
that the bands of q, k, v and MLP run into each other; that is reproduced here.
"""

import math
from collections.abc import Mapping

import numpy as np

from imagewam_jax.conversion.flux2 import action_expert_rules
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import Flux2Config

FRESH = ("action_encoder.", "head.")  # keep their own random initialisation


def initial_expert(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    scale: bool = True,
) -> dict[str, np.ndarray]:
    """Float32 expert tensors of `shapes` from the FLUX.2 tensors of the same names.

    Equal shapes are copied, others interpolated axis by axis with aligned corners. Where the
    last axis of a matrix shrinks from N to n, `scale` multiplies by sqrt(N / n), which keeps
    the size of its outputs. KeyError: FLUX.2 has no tensor of that name.
    """
    expert = {}
    for name, shape in shapes.items():
        if name.startswith(FRESH):
            continue
        if name not in tensors:
            raise KeyError(f"FLUX.2 weights have no {name}, which the action expert starts from")
        source = tensors[name]
        resized = source.astype(np.float32)
        for axis, size in enumerate(shape):
            resized = _resize(resized, axis, size)
        resized = resized.astype(source.dtype).astype(np.float32)
        if scale and source.ndim >= 2 and source.shape[-1] != shape[-1]:
            resized *= np.float32(math.sqrt(source.shape[-1] / shape[-1]))
        expert[name] = resized
    return expert


def expert_shapes(config: ActionExpertConfig, backbone: Flux2Config) -> dict[str, tuple[int, ...]]:
    """Shapes of all action-expert tensors in the official layout."""
    dim, width = config.dim, backbone.dim
    mlp = int(dim * config.mlp_ratio)
    last = {
        "action_encoder.weight": (dim, config.action_dim),
        "action_encoder.bias": (dim,),
        "in_layer.weight": (dim, 256),
        "out_layer.weight": (dim, dim),
        "double_stream_modulation_img.lin.weight": (6 * dim, dim),
        "single_stream_modulation.lin.weight": (3 * dim, dim),
        "qkv.weight": (3 * width, dim),
        "scale": (backbone.head_dim,),
        "proj.weight": (dim, width),
        "img_mlp.0.weight": (2 * mlp, dim),
        "img_mlp.2.weight": (dim, mlp),
        "linear1.weight": (3 * width + 2 * mlp, dim),
        "linear2.weight": (dim, width + mlp),
        "adaLN_modulation.1.weight": (2 * dim, dim),
        "head.linear.weight": (config.action_dim, dim),
    }
    names = [name for r in action_expert_rules(config, backbone) for name in r.names()]
    return {name: next(s for end, s in last.items() if name.endswith(end)) for name in names}


def _resize(x: np.ndarray, axis: int, size: int) -> np.ndarray:
    """1-D linear interpolation along an axis; the first and last entries stay."""
    length = x.shape[axis]
    if length == size:
        return x
    position = np.arange(size, dtype=np.float64) * ((length - 1) / max(size - 1, 1))
    low = np.minimum(position.astype(np.int64), length - 1)
    high = np.minimum(low + 1, length - 1)
    fraction = (position - low).astype(np.float32)
    fraction = fraction.reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    return x.take(low, axis) * (1 - fraction) + x.take(high, axis) * fraction
