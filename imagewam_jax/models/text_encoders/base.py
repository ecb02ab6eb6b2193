"""A text encoder: a tokenizer and the network that reads its tokens."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int32
from tqdm import tqdm


class Tokens(NamedTuple):
    """Token ids padded on the right, and how many of each row are valid."""

    ids: Int32[np.ndarray, "n length"]
    length: Int32[np.ndarray, " n"]


class TextFeatures(NamedTuple):
    """Features of each token, and how many of each row are valid; what is behind is padding."""

    features: Float[np.ndarray, "n length features"]
    length: Int32[np.ndarray, " n"]


class TextEncoder(NamedTuple):
    """`tokenize` takes prompts and the length to pad to; `model` maps `Tokens` to features.

    `identity` says which tokenizer and weights these are: features of two encoders can be
    exchanged only if it is equal.
    """

    identity: str
    tokenize: Callable[[Sequence[str], int], Tokens]
    model: nnx.Module

    @property
    def feature_dim(self) -> int:
        """Features per token."""
        return self.model.config.feature_dim

    def encode(self, prompts: Sequence[str], max_length: int, batch_size: int = 32) -> TextFeatures:
        """Features of all prompts. ValueError: a prompt is longer than `max_length` tokens."""
        ids, length = self.tokenize(prompts, max_length)
        # The weights are an argument; as constants they would be compiled into the program.
        run = jax.jit(lambda model, ids, length: model(ids, length))
        result = jax.eval_shape(run, self.model, ids, length)
        features = np.zeros(result.shape, result.dtype)
        starts = range(0, len(ids), batch_size)
        for start in tqdm(starts, desc="encoding prompts", disable=len(starts) < 2):
            rows = slice(start, start + batch_size)
            features[rows] = run(self.model, ids[rows], length[rows])
        return TextFeatures(features, length)
