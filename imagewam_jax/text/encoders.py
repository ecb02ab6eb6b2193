"""The text encoder that a config names, and the prompts that it reads.

A new encoder is a function from a config's `text` section to a `TextEncoder`, and a line in
`TEXT_ENCODERS`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagewam_jax.config.schema import choose
from imagewam_jax.errors import ConfigError, DataError, MissingWeights
from imagewam_jax.models.text_encoders.base import PromptTooLong, TextEncoder, Tokens
from imagewam_jax.models.text_encoders.qwen3 import QWEN3_4B, QWEN3_8B, byte_qwen3
from imagewam_jax.text.qwen3 import qwen3
from imagewam_jax.text.tables import (
    TextTable,
    TextTableFile,
    bucket_length,
    open_text_table,
    text_table,
)

QWEN3_OF_KLEIN = (
    f"FLUX.2 klein 4B reads {QWEN3_4B.feature_dim} channels, of Qwen/Qwen3-4B, and klein 9B "
    f"{QWEN3_8B.feature_dim}, of Qwen/Qwen3-8B"
)


def make_text_encoder(section: Mapping[str, Any]) -> TextEncoder:
    """Makes the encoder of a config's `text` section; its weights are read when it first encodes.

    ConfigError or CheckpointError: there is no such encoder.
    """
    return choose(TEXT_ENCODERS, section["encoder"], "text.encoder")(section)


def make_prompt(template: str, instruction: str) -> str:
    """Puts an instruction in the place of the template's `{}`.

    Of an instruction "a@b" only "b" is taken, as in the official recipe: some datasets tell every
    task in two languages.
    """
    if "{}" not in template:
        raise ConfigError(f"text.template is {template!r}, without {{}} for the instruction")
    _, at, second = instruction.partition("@")
    return template.replace("{}", second if at else instruction)


def encode_text(
    section: Mapping[str, Any], instructions: Sequence[str], text_dim: int | None = None
) -> TextTable:
    """Features of all instructions, cut to the smallest bucket that holds the longest.

    Row r belongs to `instructions[r]`; its features come from the config's table, if there is
    one. DataError: a prompt is longer than every bucket, or not in the table. ConfigError: the
    features are not of width `text_dim` (None: any).
    """
    prompts = [make_prompt(section["template"], instruction) for instruction in instructions]
    source = text_source(section, text_dim)
    bucket = text_bucket(section, source, prompts)
    if isinstance(source, TextTableFile):
        table = source.select(prompts)
    else:
        table = _encode_prompts(source, prompts, section)
    features = table.features[:, :bucket]
    padding = ((0, 0), (0, bucket - features.shape[1]), (0, 0))
    return TextTable(table.prompts, np.pad(features, padding), table.lengths, table.encoder)


def text_source(
    section: Mapping[str, Any], text_dim: int | None = None
) -> TextTableFile | TextEncoder:
    """Where a config's text features come from: its table, or else its encoder. No weights are
    read.

    DataError, ConfigError, CheckpointError: there is none, it is of another encoder than the
    config's, or its features are not of width `text_dim` (None: any).
    """
    if not section["table"]:
        encoder = make_text_encoder(section)
        check_width(text_dim, encoder.feature_dim)
        return encoder
    file = open_text_table(section["table"])
    check_encoder(section, file)
    check_width(text_dim, file.channels)
    return file


LONGEST_PROMPT = 4096  # tokens, of those that are measured
_MEASURED = 1000  # prompts at a time


def text_bucket(
    section: Mapping[str, Any], source: TextTableFile | TextEncoder, prompts: Sequence[str]
) -> int:
    """The smallest of `text.buckets` that holds all prompts; no feature is read or computed.

    DataError: a prompt is longer than every bucket, or not in the table.
    """
    if isinstance(source, TextTableFile):
        source.check_prompts(prompts)
        known = dict(zip(source.prompts, source.lengths.tolist(), strict=True))
        lengths = [known[prompt] for prompt in prompts]
    else:
        lengths = _token_counts(source, prompts)
    longest, buckets = max(lengths), section["buckets"]
    if longest > max(buckets):
        count = sum(length > max(buckets) for length in lengths)
        raise DataError(
            f"text.buckets {tuple(buckets)}: prompt {prompts[lengths.index(longest)]!r} is "
            f"{longest} tokens long, at most {max(buckets)} fit ({count} of {len(prompts)} prompts "
            f"are longer); add a bucket of at least {longest}"
        )
    return bucket_length(longest, buckets)


def _token_counts(encoder: TextEncoder, prompts: Sequence[str]) -> list[int]:
    counts: list[int] = []
    for start in range(0, len(prompts), _MEASURED):
        try:
            tokens = encoder.tokenize(prompts[start : start + _MEASURED], LONGEST_PROMPT)
        except PromptTooLong as error:
            raise DataError(f"text.buckets: {error}") from error
        counts += tokens.length.tolist()
    return counts


def _encode_prompts(
    encoder: TextEncoder, prompts: list[str], section: Mapping[str, Any]
) -> TextTable:
    distinct = sorted(set(prompts))
    features = {}
    for batch in encoder.encode(tokenize_prompts(encoder, distinct, section)):
        features |= zip((distinct[row] for row in batch.rows), batch.features, strict=True)
    return text_table(prompts, [features[prompt] for prompt in prompts], encoder.identity)


def tokenize_prompts(
    encoder: TextEncoder, prompts: Sequence[str], section: Mapping[str, Any]
) -> Tokens:
    """Tokenizes prompts. DataError names one that is longer than every bucket."""
    try:
        return encoder.tokenize(prompts, max(section["buckets"]))
    except PromptTooLong as error:
        raise DataError(f"text.buckets {tuple(section['buckets'])}: {error}") from error


def check_encoder(section: Mapping[str, Any], table: TextTableFile) -> None:
    """DataError unless the config's encoder made a table.

    If the config does not name its weights, only its kind is known.
    """
    try:
        table.check_encoder(make_text_encoder(section).identity)
    except MissingWeights:
        check_kind(section["encoder"], table)


def check_kind(encoder: str, table: TextTableFile) -> None:
    """DataError unless an encoder of this name made a table, whatever its weights."""
    if table.encoder.partition("(")[0] != encoder:
        raise DataError(
            f"{table.path}: made by the encoder {table.encoder!r}, text.encoder is {encoder!r}"
        )


def check_width(text_dim: int | None, feature_dim: int) -> None:
    """ConfigError unless a backbone that reads `text_dim` channels (None: any) takes features."""
    if text_dim not in (None, feature_dim):
        klein = {text_dim, feature_dim} & {QWEN3_4B.feature_dim, QWEN3_8B.feature_dim}
        raise ConfigError(
            f"model.backbone.text_dim is {text_dim}, the text features have {feature_dim} channels"
            + (f": {QWEN3_OF_KLEIN}" if klein else "")
        )


def _byte_qwen3(section: Mapping[str, Any]) -> TextEncoder:
    if section["weights"]:
        raise ConfigError(
            f"text.weights is {section['weights']!r}: the weights of byte_qwen3 are random ones"
        )
    return byte_qwen3(section["seed"])


def _qwen2_5_vl(section: Mapping[str, Any]) -> TextEncoder:
    raise MissingWeights(
        "features of the text encoder qwen2_5_vl are read from a table alone, and text.table names "
        "none: make it where PyTorch and transformers are installed, with "
        "data/text_features/qwen2_5_vl.py, and give --config.text.table=FILE"
    )


def _ovis_u1(section: Mapping[str, Any]) -> TextEncoder:
    raise MissingWeights(
        "Ovis-U1 encodes an instruction together with the camera image of each step, by a "
        "vision-language model that is not part of this project; text.table names no features "
        "that were made elsewhere. Give --config.text.table=FILE, with one row per instruction "
        "(docs/weights.md, Train from Ovis-U1, says what this leaves out)"
    )


# name in the config -> function that makes the encoder
TEXT_ENCODERS = {
    "byte_qwen3": _byte_qwen3,
    "qwen3": qwen3,
    "qwen2_5_vl": _qwen2_5_vl,
    "ovis_u1": _ovis_u1,
}
