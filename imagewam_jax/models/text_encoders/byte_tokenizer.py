"""Text as its UTF-8 bytes: a tokenizer with nothing to download."""

from collections.abc import Sequence

from imagewam_jax.models.text_encoders.base import Tokens, pad_tokens

BEGIN, END, PAD = 256, 257, 258  # behind the 256 bytes
VOCAB_SIZE = 259


def tokenize(prompts: Sequence[str], max_length: int) -> Tokens:
    """`BEGIN`, the bytes, `END`, then `PAD` up to `max_length`: see `pad_tokens`."""
    ids = [[BEGIN, *prompt.encode(), END] for prompt in prompts]
    return pad_tokens(prompts, ids, max_length, PAD)
