"""What `imagewam convert` says that it was given."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import KLEIN_4B, KLEIN_9B
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.parameters import flatten
from imagewam_jax.models.text_encoders.qwen3 import QWEN3_4B, QWEN3_8B
from imagewam_jax.weights.io.tensors import dtype_name
from imagewam_jax.weights.plan import Conversion, Found

# Public models, by what shapes tell.
PUBLIC = {"klein 4B": KLEIN_4B, "klein 9B": KLEIN_9B, "Qwen3-4B": QWEN3_4B, "Qwen3-8B": QWEN3_8B}


def describe(found: Sequence[Found], conversions: Sequence[Conversion]) -> str:
    """Lines for a terminal: each source, then each part."""
    lines = []
    for f in found:
        state = f.layout.state(f.tensors.specs)
        state = f" ({state})" if state else ""
        lines.append(f"{f.path}: {f.layout.name}, {len(f.tensors.specs)} tensors{state}")
    for c in conversions:
        leaves = flatten(c.abstract).values()
        numbers = sum(int(np.prod(leaf.shape)) for leaf in leaves)
        dtypes = dtype_name({np.dtype(leaf.dtype) for leaf in leaves})
        lines.append(f"  {c.part}: {sizes(c.config)}; {numbers:,} numbers in {dtypes}")
    return "\n".join(lines)


def sizes(config: Any) -> str:
    """The sizes of a part in a line, with its public name where it has one."""
    if isinstance(config, ImageWAMConfig):
        proprio = "no proprio" if config.proprio_dim is None else f"proprio {config.proprio_dim}"
        return (
            f"{sizes(config.backbone)}; {sizes(config.expert)}, action dimension "
            f"{config.expert.action_dim}, {proprio}, chunks of {config.horizon}, positions and "
            f"times in {config.coordinate_dtype}"
        )
    name = next((f"{name}, " for name, public in PUBLIC.items() if public == config), "")
    if isinstance(config, ActionExpertConfig):
        return f"expert width {config.dim}"
    fields = ", ".join(f"{k} {v}" for k, v in vars(config).items() if isinstance(v, int))
    return name + fields
