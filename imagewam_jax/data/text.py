"""Text features, encoded once per distinct prompt and gathered by the samples' `text_id`."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, Int, Int32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from imagewam_jax.data.errors import DataError

ENCODE_COMMAND = "imagewam encode-text"


@dataclasses.dataclass(frozen=True)
class TextTable:
    """Features of distinct prompts; row r has `lengths[r]` valid tokens, at its front.

    features: bfloat16 or float32 [prompt, token, channel].
    encoder: what made them (name and checksum); features of different encoders do not mix.
    """

    prompts: tuple[str, ...]
    features: Float[np.ndarray, "prompt token channel"]
    lengths: Int32[np.ndarray, " prompt"]
    encoder: str

    def __post_init__(self):
        rows = {len(self.prompts), self.features.shape[0], len(self.lengths)}
        if len(rows) != 1 or len(set(self.prompts)) != len(self.prompts):
            raise DataError(
                f"a text table of {len(self.prompts)} prompts ({len(set(self.prompts))} distinct), "
                f"features {self.features.shape} and {len(self.lengths)} lengths"
            )
        if (
            self.lengths.size
            and not 0 < self.lengths.min() <= self.lengths.max() <= self.features.shape[1]
        ):
            raise DataError(
                f"text lengths {self.lengths.min()}..{self.lengths.max()}, expected 1.."
                f"{self.features.shape[1]}"
            )

    def save(self, path: Path) -> None:
        metadata = {"prompts": json.dumps(self.prompts), "encoder": self.encoder}
        tensors = {"features": self.features, "lengths": self.lengths}
        save_file(tensors, path, metadata=metadata)

    def select(self, instructions: Sequence[str]) -> "TextTable":
        """The table whose row r is `instructions[r]`, so that an index's text ids are its rows.

        Raises DataError, naming the command that encodes prompts, when one is missing.
        """
        row = {prompt: number for number, prompt in enumerate(self.prompts)}
        missing = [prompt for prompt in instructions if prompt not in row]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(instructions)} prompts are not in the text table, first "
                f"{missing[0]!r}; encode them with: {ENCODE_COMMAND}"
            )
        rows = [row[prompt] for prompt in instructions]
        return TextTable(tuple(instructions), self.features[rows], self.lengths[rows], self.encoder)


def load_text_table(path: Path, encoder: str) -> TextTable:
    """Reads a table; DataError when it is not one or was made by another encoder."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            features, lengths = file.get_tensor("features"), file.get_tensor("lengths")
    except FileNotFoundError:
        raise DataError(f"{path}: no text table; make it with: {ENCODE_COMMAND}") from None
    except SafetensorError as error:
        raise DataError(f"{path}: not a text table: {error}") from error
    if metadata.get("encoder") != encoder:
        raise DataError(
            f"{path}: made by the encoder {metadata.get('encoder')!r}, expected {encoder!r}; "
            f"encode again with: {ENCODE_COMMAND}"
        )
    return TextTable(tuple(json.loads(metadata["prompts"])), features, lengths, encoder)


def gather_text(
    features: Float[Array, "prompt token channel"],
    lengths: Int[Array, " prompt"],
    text_id: Int[Array, " b"],
    bucket: int,
) -> tuple[Float[Array, "b bucket channel"], Int[Array, " b"]]:
    """Features cut to `bucket` tokens, and lengths, of each sample; on NumPy or, in jit, on JAX.

    `bucket` is `bucket_length` of the longest prompt in the batch, so nothing valid is cut.
    """
    return features[text_id, :bucket], lengths[text_id]


def bucket_length(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `length` tokens; DataError when none does."""
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise DataError(
            f"a prompt of {length} tokens is longer than the largest text bucket, {max(buckets)}"
        )
    return min(fitting)
