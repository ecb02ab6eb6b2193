"""Text as its UTF-8 bytes: a tokenizer with nothing to download."""

from collections.abc import Sequence

import numpy as np

from imagewam_jax.models.text_encoders.base import Tokens

BEGIN, END, PAD = 256, 257, 258  # behind the 256 bytes
VOCAB_SIZE = 259


def tokenize(prompts: Sequence[str], max_length: int) -> Tokens:
    """`BEGIN`, the bytes, `END`, then `PAD` up to `max_length`.

    ValueError: a prompt does not fit; it is never cut.
    """
    ids = np.full((len(prompts), max_length), PAD, np.int32)
    lengths = np.zeros(len(prompts), np.int32)
    for row, prompt in enumerate(prompts):
        tokens = [BEGIN, *prompt.encode(), END]
        if len(tokens) > max_length:
            raise ValueError(
                f"prompt {prompt!r} is {len(tokens)} tokens long, at most {max_length} fit"
            )
        ids[row, : len(tokens)] = tokens
        lengths[row] = len(tokens)
    return Tokens(ids, lengths)
