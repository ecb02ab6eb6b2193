"""Writes a small Qwen3 as Hugging Face has it: config, weights, and a tokenizer of some prompts."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from original import write_original
from tokenizer import tokenizer_files

from imagewam_jax.models.text_encoders.qwen3 import Qwen3, Qwen3Config
from imagewam_jax.weights.layouts import registry as layouts

VOCABULARY = 512  # 256 bytes, special tokens, and pieces of words
HEAD_DIM = 16


def write_qwen3(folder: Path, feature_dim: int, prompts: Sequence[str], seed: int) -> None:
    """Writes a language model whose features, after layers 9, 18 and 27 as officially, have
    `feature_dim` channels together. Its weights are random."""
    count = len(Qwen3Config.feature_layers)
    heads, rest = divmod(feature_dim, count * HEAD_DIM)
    if rest:
        raise SystemExit(
            f"model.backbone.text_dim is {feature_dim}, expected a multiple of {count * HEAD_DIM}"
        )
    dim = heads * HEAD_DIM
    sizes = Qwen3Config(
        vocab_size=VOCABULARY,
        dim=dim,
        mlp_dim=3 * dim,
        heads=heads,
        kv_heads=heads // 2 if heads % 2 == 0 else heads,
        head_dim=HEAD_DIM,
    )
    network = Qwen3(sizes, rngs=nnx.Rngs(seed))
    # What the language model has behind the features; they do not depend on it.
    last = {"model.norm.weight": np.ones(dim, np.float32)}
    folder.mkdir(parents=True)
    write_original(folder / "model.safetensors", layouts.QWEN3, sizes, network, **last)
    (folder / "config.json").write_text(json.dumps(_config_json(sizes), indent=2) + "\n")
    for name, text in tokenizer_files(prompts, VOCABULARY).items():
        (folder / name).write_text(text, encoding="utf-8")


def _config_json(sizes: Qwen3Config) -> dict:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.dim,
        "intermediate_size": sizes.mlp_dim,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": sizes.rope_theta,
        "attention_bias": False,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    }
