"""Tables of text features: a row per distinct prompt, encoded once.

On disk, a table is a safetensors file without padding: bfloat16 `features` of all prompts, one
after another, and the `lengths` in tokens of each; its metadata are the prompts, the encoder's
identity and the version of this format.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int32
from safetensors import SafetensorError, safe_open

from imagewam_jax.errors import DataError
from imagewam_jax.files import stream_safetensors, written_whole
from imagewam_jax.storage.folders import local_file
from imagewam_jax.storage.objects import AnyPath, as_path

FORMAT = "2"


@dataclasses.dataclass(frozen=True)
class TextTable:
    """Features in memory; row r has `lengths[r]` valid tokens, at its front.

    features: bfloat16 or float32 [prompt, token, channel].
    encoder: the identity of the encoder (name and checksum); features of different encoders do not
        mix.
    """

    prompts: tuple[str, ...]
    features: Float[np.ndarray, "prompt token channel"]
    lengths: Int32[np.ndarray, " prompt"]
    encoder: str

    def __post_init__(self):
        if len({len(self.prompts), self.features.shape[0], len(self.lengths)}) != 1:
            raise DataError(
                f"a text table of {len(self.prompts)} prompts, features {self.features.shape} and "
                f"{len(self.lengths)} lengths"
            )
        if (
            self.lengths.size
            and not 0 < self.lengths.min() <= self.lengths.max() <= self.features.shape[1]
        ):
            raise DataError(
                f"text lengths {self.lengths.min()}..{self.lengths.max()}, expected 1.."
                f"{self.features.shape[1]}"
            )


def text_table(
    prompts: Sequence[str], rows: Sequence[Float[np.ndarray, "_ channel"]], encoder: str
) -> TextTable:
    """The table whose row r is `rows[r]`, padded with zeros to the longest."""
    lengths = np.array([len(row) for row in rows], np.int32)
    features = np.zeros((len(rows), lengths.max(), rows[0].shape[1]), rows[0].dtype)
    for padded, row in zip(features, rows, strict=True):
        padded[: len(row)] = row
    return TextTable(tuple(prompts), features, lengths, encoder)


@dataclasses.dataclass(frozen=True)
class TextTableFile:
    """A table on disk. Prompts are distinct; features are read when they are asked for."""

    path: AnyPath
    prompts: tuple[str, ...]
    lengths: Int32[np.ndarray, " prompt"]
    channels: int
    encoder: str

    def check_encoder(self, encoder: str) -> None:
        """DataError unless this encoder made the table."""
        if self.encoder != encoder:
            raise DataError(
                f"{self.path}: made by the encoder {self.encoder!r}, expected {encoder!r}; encode "
                f"into another file with: {encode_command()}"
            )

    def select(self, prompts: Sequence[str]) -> TextTable:
        """The table whose row r is `prompts[r]`, so that an index's text ids are its rows.

        Raises DataError, naming the command that encodes prompts, when one is missing.
        """
        self.check_prompts(prompts)
        return text_table(prompts, list(self.rows(prompts)), self.encoder)

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """DataError, naming the command that encodes prompts, when one is missing."""
        known = set(self.prompts)
        if missing := [prompt for prompt in prompts if prompt not in known]:
            raise DataError(
                f"{self.path}: {len(missing)} of {len(prompts)} prompts are not in the text "
                f"table, first {missing[0]!r}; add them with: {encode_command(self.path)}"
            )

    def rows(self, prompts: Iterable[str]) -> Iterator[Float[np.ndarray, "_ channel"]]:
        """Reads the features of some prompts, all of which the table must have."""
        ends = np.cumsum(self.lengths, dtype=np.int64)
        slices = {
            prompt: slice(int(end - length), int(end))
            for prompt, end, length in zip(self.prompts, ends, self.lengths, strict=True)
        }
        with safe_open(local_file(self.path), framework="numpy") as file:
            features = file.get_slice("features")
            for prompt in prompts:
                yield features[slices[prompt]]


def open_text_table(path: AnyPath | str) -> TextTableFile:
    """Opens a table. DataError: it is not one."""
    path = as_path(path)
    try:
        with safe_open(local_file(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            shape = file.get_slice("features").get_shape()
            dtype = file.get_slice("features").get_dtype()
            lengths = file.get_tensor("lengths")
    except FileNotFoundError:
        raise DataError(f"{path}: no text table; make it with: {encode_command(path)}") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a text table: {error}") from error
    if "encoder" not in metadata:
        raise DataError(f"{path}: not a text table: its metadata names no encoder")
    if metadata.get("format") != FORMAT:
        raise DataError(
            f"{path}: a text table of format {metadata.get('format')}, this version reads "
            f"{FORMAT}; encode again with: {encode_command(path)}"
        )
    prompts = tuple(json.loads(metadata["prompts"]))
    tokens = int(lengths.sum(dtype=np.int64))
    counts = {len(prompts), len(set(prompts)), len(lengths)}
    if len(counts) != 1 or (lengths < 1).any() or [dtype, *shape[:-1]] != ["BF16", tokens]:
        raise DataError(
            f"{path}: a text table of {len(prompts)} prompts ({len(set(prompts))} distinct), "
            f"{len(lengths)} lengths, in all {tokens} tokens, and {dtype} features {shape}"
        )
    return TextTableFile(path, prompts, lengths, shape[1], metadata["encoder"])


def write_text_table(
    path: Path,
    prompts: Sequence[str],
    lengths: Sequence[int],
    features: Iterable[Float[np.ndarray, "_ channel"]],
    channels: int,
    encoder: str,
) -> TextTableFile:
    """Writes a table, complete or not at all, and opens it. Its folder is made if need be.

    features: those of all prompts, one after another, in pieces of any number of tokens, of which
        no more than one is in memory.
    DataError: the table could not be written, the features are not as many tokens as `lengths`
        says, or one holds a NaN or an infinity.
    """
    lengths = np.array(lengths, "<i4")
    shape = (int(lengths.sum(dtype=np.int64)), channels)
    tensors = {
        "lengths": (lengths.shape, lengths.dtype),
        "features": (shape, np.dtype(ml_dtypes.bfloat16)),
    }
    metadata = {"format": FORMAT, "encoder": encoder, "prompts": json.dumps(list(prompts))}

    def pieces() -> Iterator[np.ndarray]:
        yield lengths
        tokens = 0
        for piece in features:
            tokens += len(piece)
            if piece.shape[1:] != shape[1:] or not np.isfinite(piece).all():
                raise DataError(
                    f"{path}: features {piece.shape} up to token {tokens} are not finite "
                    f"numbers of {channels} channels"
                )
            yield piece.astype(ml_dtypes.bfloat16)
        if tokens != shape[0]:
            raise DataError(f"{path}: features of {tokens} tokens, expected {shape[0]}")

    try:
        with written_whole(path) as file:
            stream_safetensors(file, tensors, pieces(), metadata)
    except OSError as error:
        raise DataError(f"{path}: the text table could not be written: {error}") from error
    return open_text_table(path)


def encode_command(path: AnyPath | str = "FILE") -> str:
    """The command that makes a table, or adds to one."""
    return f"imagewam encode-text --config=CONFIG --output={path}"


def bucket_length(length: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds `length` tokens; DataError when none does."""
    fitting = [bucket for bucket in buckets if bucket >= length]
    if not fitting:
        raise DataError(
            f"a prompt of {length} tokens is longer than the largest text bucket, {max(buckets)}"
        )
    return min(fitting)
