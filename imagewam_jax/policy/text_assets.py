"""The text that a policy is loaded with: a table in place of its own, room for longer instructions,
and the encoder of new ones."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from imagewam_jax.errors import ConfigError
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.text_encoders.base import TextEncoder
from imagewam_jax.preprocess.inputs import PolicyAssets
from imagewam_jax.text.encoders import check_kind, check_width, make_text_encoder
from imagewam_jax.text.tables import TextTableFile

CONFIGS_ENCODER = "config"  # stands for the encoder that the config names


def check_table(file: TextTableFile, metadata: Mapping[str, Any], text_dim: int) -> None:
    """DataError or ConfigError unless the encoder that the policy was trained with made a table.

    A converted policy tells only the kind of its encoder.
    """
    if "text_encoder" in metadata:
        file.check_encoder(metadata["text_encoder"])
    else:
        check_kind(metadata["config"]["text"]["encoder"], file)
    check_width(text_dim, file.channels)


def table_tree(file: TextTableFile, dtype: jnp.dtype) -> dict[str, Array]:
    """All features of a table, as the tree "text" of a checkpoint."""
    table = file.select(file.prompts)
    return {"features": jnp.asarray(table.features, dtype), "length": jnp.asarray(table.lengths)}


def encoder_of(path: Path | str, metadata: Mapping[str, Any], text_dim: int) -> TextEncoder:
    """The encoder at a path, or that of the config. ConfigError: the policy was trained with
    another; a converted policy tells only its kind."""
    section = metadata["config"]["text"]
    if str(path) != CONFIGS_ENCODER:
        section = section | {"weights": str(path)}
    encoder = make_text_encoder(section)
    trained_with = metadata.get("text_encoder", encoder.identity)
    if encoder.identity != trained_with:
        raise ConfigError(
            f"the text encoder {path} is {encoder.identity!r}, the policy reads features of "
            f"{trained_with!r}"
        )
    check_width(text_dim, encoder.feature_dim)
    return encoder


def no_text(config: ImageWAMConfig, tokens: int | None, dtype: jnp.dtype) -> dict[str, Array]:
    """The tree "text" of a policy that knows no instruction yet."""
    if tokens is None:
        raise ConfigError(
            "the policy knows no instruction: say how many tokens those that it meets may have, "
            "with text_tokens (--text-tokens), such as 63"
        )
    features = jnp.zeros((0, tokens, config.backbone.text_dim), dtype)
    return {"features": features, "length": jnp.zeros((0,), jnp.int32)}


def with_tokens(assets: PolicyAssets, tokens: int) -> PolicyAssets:
    """Assets whose text has room for so many tokens; padding is never attended to."""
    room = tokens - assets.text.shape[1]
    if room < 0:
        raise ConfigError(
            f"text_tokens is {tokens}, an instruction that the policy knows may have "
            f"{assets.text.shape[1]}"
        )
    text = jnp.pad(assets.text, ((0, 0), (0, room), (0, 0)))
    return dataclasses.replace(assets, text=text)
