"""What a policy is given, as its FLOPs are counted by."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from imagewam_jax.models.flops import Sizes
from imagewam_jax.policies.frozen import Frozen, encode_images, image_spec


def work_sizes(data: Mapping[str, Any], frozen: Frozen, images: Sequence[int]) -> Sizes:
    """Of a batch with images of this shape, [batch, camera, moment, rows, columns, 3].

    data: that section of a config. frozen: may be abstract.
    """
    shape = jax.ShapeDtypeStruct((1, images[1], 1, *images[3:]), jnp.uint8)
    latents = jax.eval_shape(
        lambda frozen, images: encode_images(frozen, image_spec(data), images), frozen, shape
    )
    _, _, references, *grid, _ = latents.shape
    return Sizes(images[0], frozen.text.shape[1], tuple(grid), tuple(grid), references)
