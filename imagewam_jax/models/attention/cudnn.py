"""cuDNN's fused attention for NVIDIA GPUs, as JAX calls it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from imagewam_jax.models.attention.devices import on_each_device, pad_tokens, target_platform
from imagewam_jax.models.attention.segments import KV, joined
from imagewam_jax.models.remat import ATTENDED, named

DTYPES = (jnp.bfloat16, jnp.float16)
MOST_CHANNELS = 256  # on Hopper and later; 128 before, of which JAX tells


def check_cudnn(platform: str, head_dim: int, dtype: DTypeLike) -> None:
    """ValueError: the kernel does not run on this platform, with these heads or in this dtype."""
    if platform not in ("gpu", "cuda"):
        raise ValueError(
            f"attention 'cudnn' runs on NVIDIA GPUs and the devices are of platform {platform!r}; "
            "choose 'xla'"
        )
    if jnp.dtype(dtype) not in DTYPES:
        raise ValueError(
            f"attention 'cudnn' computes in bfloat16 or float16 and its queries are "
            f"{jnp.dtype(dtype).name}; set train.compute_dtype to 'bfloat16' or choose 'xla'"
        )
    if head_dim % 8 or head_dim > MOST_CHANNELS:
        raise ValueError(
            f"attention 'cudnn' takes heads of a multiple of 8 channels, up to {MOST_CHANNELS}, "
            f"and these have {head_dim}; choose 'xla'"
        )


def attend_cudnn(
    q_bsnh: Float[Array, "b s n h"],
    segments: Sequence[KV],
    length_b: Int[Array, " b"] | None = None,
) -> Float[Array, "b s n h"]:
    """As `attend_xla`, by cuDNN; keys of several segments are copied behind each other.

    Odd numbers of tokens are padded: padded keys are masked, padded queries cut off. Softmax is
    float32. ValueError: as of `check_cudnn`.
    """
    check_cudnn(target_platform(), q_bsnh.shape[-1], q_bsnh.dtype)
    k, v = joined(segments)
    if length_b is None:
        length_b = jnp.full(q_bsnh.shape[0], k.shape[1])
    return on_each_device(_attend, q_bsnh, k, v, length_b)


def _attend(q_bsnh, k_btnh, v_btnh, length_b) -> Float[Array, "b s n h"]:
    """What one device computes."""
    # JAX refuses gradients for odd token counts, as cuDNN does where there is a bias.
    q, k, v = (pad_tokens(x, 2) for x in (q_bsnh, k_btnh, v_btnh))
    attended = jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=length_b.astype(jnp.int32), implementation="cudnn"
    )
    return named(attended[:, : q_bsnh.shape[1]], ATTENDED)
