"""Text encoders like a converted Qwen3, of a few kilobytes: a real tokenizer and few channels."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx

from imagewam_jax.checkpoints.store import Checkpoints
from imagewam_jax.models.text_encoders.qwen3 import Qwen3, Qwen3Config

# As of Qwen3: 27 layers matter, and one more is there in the language model. Its tokenizer has
# fewer tokens than its embeddings have rows, too.
SIZES = Qwen3Config(vocab_size=352, dim=32, mlp_dim=48, heads=4, kv_heads=2, head_dim=8)
SENTENCES = (
    "A video recorded from a robot's point of view executing the following instruction:",
    "pick up the black bowl and place it on the plate, open the middle drawer",
)
_ANSWER = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
_NO_THOUGHT = "{{- '<think>\n\n</think>\n\n' }}"
# What Qwen3's chat template is for one turn, and those of its variants of 2507.
TURNS = (
    "{%- for m in messages %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endfor %}"
)
CHAT = (
    TURNS
    + _ANSWER
    + "{%- if enable_thinking is defined and enable_thinking is false %}"
    + _NO_THOUGHT
    + "{%- endif %}{%- endif %}"
)
CHAT_INSTRUCT_2507 = TURNS + _ANSWER + "{%- endif %}"
CHAT_THINKING_2507 = TURNS + _ANSWER + "{{- '<think>\n' }}{%- endif %}"


@functools.cache
def tokenizer_json() -> str:
    """A byte-level BPE with the special tokens of Qwen3."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = byte_level
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=byte_level.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    thoughts = ("<think>", "</think>")
    tokenizer.add_tokens([tokenizers.AddedToken(t, normalized=False) for t in thoughts])
    return tokenizer.to_str()


def tokenizer_files(chat_template: str | None = CHAT) -> dict[str, str]:
    """The files of a tokenizer: name -> content."""
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "add_prefix_space": False,
        "model_max_length": 131072,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    return {"tokenizer.json": tokenizer_json(), "tokenizer_config.json": json.dumps(config)}


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
