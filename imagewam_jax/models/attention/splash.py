"""Splash attention, JAX's own Pallas kernel for TPUs: scores never leave the chip's fast memory."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from imagewam_jax.models.attention.devices import on_each_device, pad_tokens, target_platform
from imagewam_jax.models.attention.segments import KV, Attend, joined
from imagewam_jax.models.remat import ATTENDED

# A TPU's vector registers are this wide: heads have as many channels, or a multiple, and tokens
# come in blocks of a multiple.
LANES = 128
# The largest blocks of queries and keys. The float32 scores of one pair of them, [1024, 512], are
# 2 MB; the backward pass holds four such arrays, and a program may take 16 MB.
MOST_QUERIES, MOST_KEYS = 512, 1024


def check_splash(platform: str, head_dim: int, dtype: DTypeLike) -> None:
    """ValueError: the kernel does not run on this platform or with these heads."""
    if platform != "tpu":
        raise ValueError(
            f"attention 'splash' runs on TPUs and the devices are of platform {platform!r}; "
            "choose 'xla'"
        )
    if head_dim % LANES:
        raise ValueError(
            f"attention 'splash' takes heads of a multiple of {LANES} channels and these have "
            f"{head_dim}; choose 'xla'"
        )


def make_splash(interpret: bool = False) -> Attend:
    """An `Attend` by splash attention; `interpret` runs the kernel's steps on any platform, slowly.

    Keys of several segments are copied behind each other. Token counts are padded to whole blocks:
    padded keys are masked as those behind `length_b` are, padded queries are cut off. `q` times
    1/sqrt(h) is computed in float32 and rounded once to the dtype of `q`, since the kernel scales
    nothing itself. Scores, softmax and sums are float32. ValueError: as of `check_splash`.
    """

    def attend_splash(
        q_bsnh: Float[Array, "b s n h"],
        segments: Sequence[KV],
        length_b: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b s n h"]:
        platform = "tpu" if interpret else target_platform()
        check_splash(platform, q_bsnh.shape[-1], q_bsnh.dtype)
        k, v = joined(segments)
        if length_b is None:
            length_b = jnp.full(q_bsnh.shape[0], k.shape[1])
        kernel = functools.partial(_attend, interpret=interpret)
        return on_each_device(kernel, q_bsnh, k, v, length_b)

    return attend_splash


def _attend(q_bsnh, k_btnh, v_btnh, length_b, *, interpret: bool) -> Float[Array, "b s n h"]:
    """What one device computes."""
    splash = _library()
    count, heads, channels = q_bsnh.shape[1:]
    q_bsnh = (q_bsnh.astype(jnp.float32) * channels**-0.5).astype(q_bsnh.dtype)
    q, k, v = (pad_tokens(x, LANES).swapaxes(1, 2) for x in (q_bsnh, k_btnh, v_btnh))
    queries, keys = q.shape[2], k.shape[2]
    kernel = splash.make_splash_mha_single_device(
        splash.MultiHeadMask([splash.FullMask((queries, keys))] * heads),
        block_sizes=block_sizes(queries, keys),
        residual_checkpoint_name=ATTENDED,  # with the sums of its softmax
        interpret=interpret,
    )
    # Queries attend to keys of their own number: 0 are the valid ones.
    query_ids = jnp.zeros(queries, jnp.int32)
    key_ids_bt = (jnp.arange(keys) >= length_b[:, None]).astype(jnp.int32)

    def one_sample(q_nsh, k_nth, v_nth, key_ids):
        return kernel(q_nsh, k_nth, v_nth, segment_ids=splash.SegmentIds(query_ids, key_ids))

    attended = jax.vmap(one_sample)(q, k, v, key_ids_bt)
    return attended.swapaxes(1, 2)[:, :count]


def block_sizes(queries: int, keys: int) -> Any:
    """The kernel's `BlockSizes` for padded numbers of queries and keys: as large as they can be."""
    rows, columns = _largest_block(queries, MOST_QUERIES), _largest_block(keys, MOST_KEYS)
    # One kernel can make the gradients of q, k and v from scores that it computes once. With
    # several blocks of keys it would sum partial gradients of q that are rounded to q's dtype.
    fused = columns == keys
    return _library().BlockSizes(
        block_q=rows,
        block_kv=columns,
        block_q_dkv=rows,
        block_kv_dkv=columns,
        block_q_dq=None if fused else rows,
        block_kv_dq=None if fused else columns,
        use_fused_bwd_kernel=fused,
    )


def _library() -> Any:
    """JAX's module, imported when it is used: what needs no kernel starts half a second earlier."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    return splash_attention


def _largest_block(tokens: int, most: int) -> int:
    """The largest multiple of LANES up to `most` that divides a multiple of it."""
    blocks = tokens // LANES
    return LANES * max(n for n in range(1, most // LANES + 1) if blocks % n == 0)
