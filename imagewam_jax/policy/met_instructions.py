"""Instructions that a policy meets while it acts: each is encoded once, and kept."""

import collections
import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int32

from imagewam_jax.errors import InputError
from imagewam_jax.models.text_encoders.base import PromptTooLong, TextEncoder

PLACES = 256  # instructions that are kept


class Encoded(NamedTuple):
    """A prompt's features, how many of the rows are valid, and how long encoding took."""

    features: Float[np.ndarray, "tokens channel"]
    length: int
    seconds: float


class MetInstructions:
    """Which row of the policy's text holds which prompt, beyond those that it was saved with.

    Rows from `first` on are given to prompts in the order in which they are met; when all are
    taken, the prompt that was not asked for longest gives up its row. Every prompt gets a number
    that is given to no other: a caller that kept the number of an evicted prompt gets an
    InputError, and never another instruction.

    section: a config's `text`. tokens: that a row holds.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        section: Mapping[str, Any],
        *,
        first: int,
        tokens: int,
        places: int = PLACES,
    ):
        self._encoder = encoder._replace(load=functools.cache(encoder.load))
        self._buckets = section["buckets"]
        self._tokens = tokens
        self._places = places
        self._numbers: collections.OrderedDict[str, int] = collections.OrderedDict()
        self._rows: dict[int, int] = {}
        self._first = self.numbers = first  # how many numbers there are, those of the saved too

    def __contains__(self, prompt: str) -> bool:
        return prompt in self._numbers

    def number(self, prompt: str) -> int | None:
        """The number of a prompt that was met before, which is now the one asked for last."""
        if prompt not in self._numbers:
            return None
        self._numbers.move_to_end(prompt)
        return self._numbers[prompt]

    def encode(self, prompt: str) -> Encoded:
        """Encodes a prompt; the first time, weights are read and the encoder is compiled.

        InputError: it has more tokens than a row.
        """
        start = time.perf_counter()
        try:
            tokens = self._encoder.tokenize([prompt], self._tokens)
        except PromptTooLong as error:
            larger = [size for size in self._buckets if size > self._tokens]
            advice = f"; load the policy with text_tokens={min(larger)} or more" if larger else ""
            raise InputError(f"instructions: {error}{advice}") from error
        (batch,) = self._encoder.encode(tokens)
        features = np.zeros((self._tokens, self._encoder.feature_dim), batch.features[0].dtype)
        features[: len(batch.features[0])] = batch.features[0]
        return Encoded(features, int(tokens.length[0]), time.perf_counter() - start)

    def keep(self, prompt: str) -> tuple[int, int]:
        """A number and a row for a prompt that was not met before."""
        if len(self._rows) < self._places:
            row = self._first + len(self._rows)
        else:
            _, oldest = self._numbers.popitem(last=False)
            row = self._rows.pop(oldest)
        number, self.numbers = self.numbers, self.numbers + 1
        self._numbers[prompt], self._rows[number] = number, row
        return number, row

    def rows(self, numbers: Int32[np.ndarray, " b"]) -> Int32[np.ndarray, " b"]:
        """The rows of the text that numbers stand for. InputError: a prompt is gone."""
        found = []
        for number in numbers.tolist():
            row = number if number < self._first else self._rows.get(number)
            if row is None:
                raise InputError(
                    f"text_id: the instruction of {number} has given up its place to others that "
                    "were met since; Policy.text_ids gives the number that it has now"
                )
            found.append(row)
        return np.array(found, np.int32)
