"""A small Qwen3 over UTF-8 bytes, with random weights that stay as they are.

Nothing to download: random features tell prompts apart, and that is all a policy for a handful
of instructions needs. They know nothing of meaning.
"""

from collections.abc import Sequence

from flax import nnx

from imagewam_jax.models.text_encoders import byte_qwen3 as byte_tokenizer
from imagewam_jax.models.text_encoders.base import TextEncoder, Tokens, pad_tokens
from imagewam_jax.models.text_encoders.qwen3 import Qwen3, Qwen3Config

BEGIN, END, PAD = 256, 257, 258  # behind the 256 bytes
VOCAB_SIZE = 259


def tokenize(prompts: Sequence[str], max_length: int) -> Tokens:
    """`BEGIN`, the bytes, `END`, then `PAD` up to `max_length`: see `pad_tokens`."""
    ids = [[BEGIN, *prompt.encode(), END] for prompt in prompts]
    return pad_tokens(prompts, ids, max_length, PAD)


BYTE_QWEN3 = Qwen3Config(
    vocab_size=byte_tokenizer.VOCAB_SIZE,
    dim=64,
    mlp_dim=192,
    heads=4,
    kv_heads=2,
    head_dim=16,
    feature_layers=(2, 4, 6),
)


def byte_qwen3(seed: int = 0, config: Qwen3Config = BYTE_QWEN3) -> TextEncoder:
    """The encoder of a seed. ValueError: `config` has another vocabulary than the tokenizer."""
    if config.vocab_size != byte_tokenizer.VOCAB_SIZE:
        raise ValueError(
            f"vocab_size {config.vocab_size} differs from that of the byte tokenizer, "
            f"{byte_tokenizer.VOCAB_SIZE}"
        )
    return TextEncoder(
        identity=f"byte_qwen3(seed={seed}, {config})",
        feature_dim=config.feature_dim,
        tokenize=byte_tokenizer.tokenize,
        load=lambda: Qwen3(config, rngs=nnx.Rngs(seed)),
    )
