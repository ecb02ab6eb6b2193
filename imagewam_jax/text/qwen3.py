"""Qwen3 from a checkpoint that `imagewam convert` made from the official weights."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from imagewam_jax.checkpoints.store import check_arrays, open_checkpoint
from imagewam_jax.config.schema import from_fields
from imagewam_jax.errors import CheckpointError, ConfigError, MissingWeights
from imagewam_jax.models.parameters import module_builder, module_tree
from imagewam_jax.models.text_encoders.base import TextEncoder, Tokens, pad_tokens
from imagewam_jax.models.text_encoders.qwen3 import Qwen3, Qwen3Config
from imagewam_jax.storage.objects import as_path

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def render_chat(prompt: str) -> str:
    """The text that the tokenizer gets."""
    return CHAT.replace("{}", prompt)


def qwen3_tokenizer(
    files: Mapping[str, str], vocab_size: int, where: str
) -> Callable[[Sequence[str], int], Tokens]:
    """`TextEncoder.tokenize` with a Hugging Face tokenizer.

    files: name -> content. They are read at the first call. Then: ConfigError without
    `transformers`; CheckpointError, which says `where`, if the files are no tokenizer or not the
    one of these weights.
    """

    @functools.cache
    def tokenizer():
        loaded = _load_tokenizer(files, where)
        _check_chat(loaded, where)
        if len(loaded) > vocab_size:
            raise CheckpointError(
                f"{where}: its tokenizer has {len(loaded)} tokens, its weights {vocab_size}"
            )
        return loaded

    def tokenize(prompts: Sequence[str], max_length: int) -> Tokens:
        ids = tokenizer()([render_chat(prompt) for prompt in prompts])["input_ids"]
        return pad_tokens(prompts, ids, max_length, tokenizer().pad_token_id or 0)

    return tokenize


def _load_tokenizer(files: Mapping[str, str], where: str) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ConfigError(
            "text for Qwen3 is tokenised by the package transformers, which is not installed: "
            "pip install 'imagewam-jax[text]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            Path(folder, Path(name).name).write_text(text, encoding="utf-8")
        try:
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # parsers of its files raise all kinds
            raise CheckpointError(f"{where}: not a tokenizer: {error}") from error


def _check_chat(tokenizer: Any, where: str) -> None:
    """CheckpointError: the tokenizer has another chat template, so the weights are others too."""
    if not tokenizer.chat_template:
        return
    found = tokenizer.apply_chat_template(
        [{"role": "user", "content": "{}"}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    if found != CHAT:
        raise CheckpointError(
            f"{where}: this Qwen3 is spoken to as {found!r}, the encoder of FLUX.2 klein as "
            f"{CHAT!r}: its weights are those of another variant (such as the ones of 2507); "
            "obtain Qwen/Qwen3-4B or Qwen/Qwen3-8B"
        )


def qwen3(section: Mapping[str, Any]) -> TextEncoder:
    """Makes the encoder whose checkpoint `text.weights` names.

    MissingWeights: none is named; the error says how to get them. ConfigError, CheckpointError: the
    path is not the checkpoint of such an encoder.
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
    if (as_path(path) / "config.json").is_file():
        raise ConfigError(
            f"text.weights: {path} is a Hugging Face folder; convert it: imagewam convert {path} "
            "--to weights/qwen3"
        )
    checkpoints, step = open_checkpoint(path)
    metadata = checkpoints.restore_json(step, "metadata")
    text = metadata["config"].get("text", {})
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
        identity=_identity(config, dtype, metadata["provenance"]["sources"], tokenizer),
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
    """A name with a hash of everything that features depend on, wherever the files are."""
    weights = sorted(file["sha256"] for file in sources if file["part"] == "text_encoder")
    parts = [weights, str(dtype), dataclasses.asdict(config), tokenizer, CHAT]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return f"qwen3(dim={config.dim}, feature_layers={config.feature_layers}, sha256={digest[:16]})"


def _load(path: str, config: Qwen3Config) -> Qwen3:
    """The weights in the dtypes in which they were saved, on the first device."""

    def make() -> Qwen3:
        return Qwen3(config, rngs=nnx.Rngs(0))

    checkpoints, step = open_checkpoint(path)
    with contextlib.closing(checkpoints):
        saved = checkpoints.abstract(step, "text_encoder")
        expected = jax.eval_shape(lambda: module_tree(make()))
        check_arrays(expected, saved, f"{path}: text_encoder")
        tree = checkpoints.restore(step, {"text_encoder": saved})["text_encoder"]
    return module_builder(make)(tree)
