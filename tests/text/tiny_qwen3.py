"""Text encoders like a converted Qwen3, of a few kilobytes: a real tokenizer and few channels."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

from imagewam_jax.checkpoints.store import Checkpoints
from imagewam_jax.models.text_encoders.qwen3 import Qwen3, Qwen3Config
from tests.data_builders.scripts import TINY_NETWORKS, load

# As of Qwen3: 27 layers matter, and one more is there in the language model. Its tokenizer has
# fewer tokens than its embeddings have rows, too.
SIZES = Qwen3Config(vocab_size=352, dim=32, mlp_dim=48, heads=4, kv_heads=2, head_dim=8)
SENTENCES = (
    "A video recorded from a robot's point of view executing the following instruction:",
    "pick up the black bowl and place it on the plate, open the middle drawer",
)
VOCABULARY = 342
_tokenizer = load("tokenizer", TINY_NETWORKS)
CHAT = _tokenizer.CHAT_TEMPLATE
# Those of Qwen3's variants of 2507.
CHAT_INSTRUCT_2507 = _tokenizer.TURNS + _tokenizer.ANSWER + "{%- endif %}"
CHAT_THINKING_2507 = _tokenizer.TURNS + _tokenizer.ANSWER + "{{- '<think>\n' }}{%- endif %}"


def tokenizer_files(chat_template: str | None = CHAT) -> dict[str, str]:
    """The files of a tokenizer: name -> content."""
    pytest.importorskip("tokenizers")
    return _tokenizer.tokenizer_files(SENTENCES, VOCABULARY, chat_template)


def parameters(config: Qwen3Config = SIZES, dtype: str = "bfloat16") -> dict[str, Any]:
    """Random parameters, as a nested dictionary."""
    module = jax.jit(lambda: Qwen3(config, rngs=nnx.Rngs(0)))()
    return jax.tree.map(lambda x: x.astype(dtype), nnx.to_pure_dict(nnx.state(module)))


def write_encoder(
    folder: Path,
    tree: dict[str, Any],
    *,
    config: Qwen3Config = SIZES,
    tokenizer: dict[str, str] | None = None,
    checksums: tuple[str, ...] = ("1f" * 32, "2e" * 32),
) -> str:
    """A checkpoint as `imagewam convert` writes it; returns its path, for `text.weights`."""
    files = [f"model-{number}.safetensors" for number in range(len(checksums))]
    sources = [
        {"file": f, "sha256": s, "part": "text_encoder"}
        for f, s in zip(files, checksums, strict=True)
    ]
    metadata = {
        "config": {"text": {"encoder": "qwen3", "sizes": dataclasses.asdict(config)}},
        "provenance": {"sources": sources},
    }
    tokenizer = tokenizer_files() if tokenizer is None else tokenizer
    checkpoints = Checkpoints(folder)
    checkpoints.save(0, {"text_encoder": tree}, metadata, tokenizer=tokenizer)
    checkpoints.wait()
    checkpoints.close()
    return str(folder)


def text_section(**changes) -> dict[str, Any]:
    """The `text` section of a config."""
    return {
        "encoder": "qwen3",
        "weights": "",
        "seed": 0,
        "template": "{}",
        "buckets": (32, 64),
        "table": "",
        **changes,
    }
