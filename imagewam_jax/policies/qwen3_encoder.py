"""Qwen3 from a checkpoint that `imagewam convert` made of the official weights."""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from imagewam_jax.models.text_encoders.base import TextEncoder
from imagewam_jax.models.text_encoders.qwen3 import Qwen3, Qwen3Config
from imagewam_jax.policies.checkpoint import check_arrays, open_checkpoint
from imagewam_jax.policies.config import from_fields
from imagewam_jax.policies.errors import CheckpointError, ConfigError, MissingWeights
from imagewam_jax.policies.parameters import module_tree
from imagewam_jax.policies.qwen3_tokenizer import CHAT, qwen3_tokenizer


def qwen3(section: Mapping[str, Any]) -> TextEncoder:
    """The encoder at `text.weights`.

    MissingWeights: there is none, and how to get it. ConfigError, CheckpointError: it is
    something else.
    """
    path = section["weights"]
    if not path:
        raise MissingWeights(
            "the text encoder qwen3 needs weights, or a table of the features that it made, and "
            "neither text.weights nor text.table names any. Obtain Qwen/Qwen3-4B for FLUX.2 "
            "klein 4B, or Qwen/Qwen3-8B for klein 9B, from Hugging Face. Convert it: imagewam "
            "convert Qwen3-4B/ --to weights/qwen3-4b. Encode the dataset's instructions: imagewam "
            "encode-text --config=... --config.text.weights=weights/qwen3-4b "
            "--output=text.safetensors. Then train with --config.text.table=text.safetensors"
        )
    if Path(path, "config.json").exists():
        raise ConfigError(
            f"text.weights: {path} is a Hugging Face folder; convert it: imagewam convert {path} "
            "--to weights/qwen3"
        )
    checkpoints, step = open_checkpoint(path)
    about = checkpoints.restore_json(step, "about")
    text = about["config"].get("text", {})
    if "text_encoder" not in checkpoints.trees(step) or text.get("encoder") != "qwen3":
        raise CheckpointError(f"text.weights: {path} is not the checkpoint of a text encoder")
    config = from_fields(Qwen3Config, text["sizes"], f"{path}: text.sizes")
    dtype = checkpoints.abstract(step, "text_encoder")["embedding"].dtype
    try:
        tokenizer = checkpoints.restore_json(step, "tokenizer")
    except CheckpointError:
        tokenizer = {}
    checkpoints.close()
    if not tokenizer:
        raise CheckpointError(
            f"text.weights: {path} has no tokenizer; convert the whole Hugging Face folder, with "
            "tokenizer.json beside the weights"
        )
    return TextEncoder(
        identity=_identity(config, dtype, about["provenance"]["sources"], tokenizer),
        feature_dim=config.feature_dim,
        tokenize=qwen3_tokenizer(tokenizer, config.vocab_size, path),
        load=lambda: _load(path, config),
    )


def _identity(
    config: Qwen3Config,
    dtype: np.dtype,
    sources: Sequence[Mapping[str, Any]],
    tokenizer: Mapping[str, str],
) -> str:
    """Of everything that features depend on, but not of where it is."""
    weights = sorted(file["sha256"] for file in sources if file["part"] == "text_encoder")
    parts = [weights, str(dtype), dataclasses.asdict(config), tokenizer, CHAT]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"qwen3(dim={config.dim}, feature_layers={config.feature_layers}, sha256={digest[:16]})"


def _load(path: str, config: Qwen3Config) -> Qwen3:
    """The weights in the dtypes in which they were saved, on the first device."""
    module = jax.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(module)
    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        saved = checkpoints.abstract(step, "text_encoder")
        check_arrays(module_tree(module), saved, f"{path}: text_encoder")
        tree = checkpoints.restore(step, {"text_encoder": saved})["text_encoder"]
    nnx.replace_by_pure_dict(state, tree)
    return nnx.merge(graph, state)
