"""A text encoder: a tokenizer and the network that reads its tokens."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int, Int32
from tqdm import tqdm

# Tokens in one batch: enough to keep a device busy, few beside the weights of a large encoder.
BATCH_TOKENS = 2048
# Batches are padded to a multiple of this, so that few programs are compiled.
TOKEN_MULTIPLE = 32


class Tokens(NamedTuple):
    """Token ids padded on the right, and how many of each row are valid."""

    ids: Int32[np.ndarray, "n length"]
    length: Int32[np.ndarray, " n"]


class EncodedBatch(NamedTuple):
    """Some rows of `Tokens`, and the features of the valid tokens of each."""

    rows: Int[np.ndarray, " rows"]
    features: list[Float[np.ndarray, "_ channel"]]


class PromptTooLong(ValueError):
    """A prompt has more tokens than fit; the message names it."""


class TextEncoder(NamedTuple):
    """A tokenizer and a network, which is loaded when `encode` needs it.

    `tokenize` takes prompts and the length to pad to; `load` makes the network, which maps
    `Tokens` to features. `identity` says which tokenizer and weights these are, and begins with
    the encoder's name and a parenthesis: features of two encoders can be exchanged only if it is
    equal.
    """

    identity: str
    feature_dim: int
    tokenize: Callable[[Sequence[str], int], Tokens]
    load: Callable[[], nnx.Module]

    def encode(self, tokens: Tokens) -> Iterator[EncodedBatch]:
        """Features of all rows, in `batches`.

        The other rows of its batch change the features of a row by rounding alone.
        """
        model, todo = self.load(), batches(tokens.length)
        bar = tqdm(
            total=len(tokens.length),
            unit="prompt",
            desc="encoding prompts",
            disable=len(todo) < 2,
        )
        with bar:
            for rows in todo:
                length = tokens.length[rows]
                ids = tokens.ids[rows, : _padded(length.max())]
                features = np.asarray(_run(model, ids, length))
                yield EncodedBatch(rows, [f[:n] for f, n in zip(features, length, strict=True)])
                bar.update(len(rows))


def batches(length: Int[np.ndarray, " n"]) -> list[Int[np.ndarray, " _"]]:
    """Row numbers in batches of about the same length, the shortest first.

    Where the rows of the first batches are left out, the other batches stay the same.
    """
    order = np.argsort(length, kind="stable")
    padded = _padded(length[order])
    result = []
    for tokens in np.unique(padded):
        rows, size = order[padded == tokens], max(1, BATCH_TOKENS // tokens)
        result += [rows[start : start + size] for start in range(0, len(rows), size)]
    return result


def pad_tokens(
    prompts: Sequence[str], ids: Sequence[Sequence[int]], max_length: int, pad: int
) -> Tokens:
    """Token ids, one prompt to a row. PromptTooLong: they do not fit; nothing is ever cut."""
    padded = np.full((len(prompts), max_length), pad, np.int32)
    for prompt, row, tokens in zip(prompts, padded, ids, strict=True):
        if len(tokens) > max_length:
            raise PromptTooLong(
                f"prompt {prompt!r} is {len(tokens)} tokens long, at most {max_length} fit"
            )
        row[: len(tokens)] = tokens
    return Tokens(padded, np.array([len(tokens) for tokens in ids], np.int32))


def _padded(length: Int[np.ndarray, "*n"]) -> Int[np.ndarray, "*n"]:
    return -(-length // TOKEN_MULTIPLE) * TOKEN_MULTIPLE


@jax.jit
def _run(model, ids, length):
    # The weights are an argument; as constants they would be compiled into the program.
    return model(ids, length)
