"""Qwen3 tensors under their Hugging Face names (spec imagewam_flux2, 3.2).

Linear weights are `[out, in]` there and `[in, ...out]` here. A checkpoint of the whole
language model has more than the encoder: what follows the last layer that features are taken
after is left out, by name, and a tensor of any other name is an error.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from imagewam_jax.conversion.mapping import Rule, rule, to_tree
from imagewam_jax.models.text_encoders.qwen3 import Qwen3Config

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_AFTER_THE_LAYERS = ("model.norm.weight", "lm_head.weight")


def qwen3_tree(
    config: Qwen3Config, tensors: Mapping[str, np.ndarray], like: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """Parameters of `Qwen3`; arguments and errors are those of `mapping.to_tree`."""
    tensors = {name: t for name, t in tensors.items() if is_used(name, config)}
    return to_tree(qwen3_rules(config), tensors, like, what)


def is_used(name: str, config: Qwen3Config) -> bool:
    """Whether a tensor of the language model can have a part in the features.

    True also for names that no Qwen3 has: they are not known to be of no use.
    """
    layer = _LAYER.match(name)
    if layer is not None:
        return int(layer[1]) < config.layers
    return name not in _AFTER_THE_LAYERS


def qwen3_rules(config: Qwen3Config) -> list[Rule]:
    """Hugging Face names to the tree of `models.text_encoders.qwen3.Qwen3`."""
    heads, kv_heads = {"n": config.heads}, {"n": config.kv_heads}
    split = "(n h) i -> i n h"
    return [
        rule("model.embed_tokens.weight", "embedding", "v d -> v d"),
        _layer("input_layernorm", "attention_norm.scale", "d -> d", config),
        _layer("self_attn.q_proj", "q.kernel", split, config, **heads),
        _layer("self_attn.k_proj", "k.kernel", split, config, **kv_heads),
        _layer("self_attn.v_proj", "v.kernel", split, config, **kv_heads),
        _layer("self_attn.q_norm", "q_norm.scale", "h -> h", config),
        _layer("self_attn.k_norm", "k_norm.scale", "h -> h", config),
        _layer("self_attn.o_proj", "out.kernel", "o (n h) -> n h o", config, **heads),
        _layer("post_attention_layernorm", "mlp_norm.scale", "d -> d", config),
        _layer("mlp.gate_proj", "mlp.gate.kernel", "o i -> i o", config),
        _layer("mlp.up_proj", "mlp.up.kernel", "o i -> i o", config),
        _layer("mlp.down_proj", "mlp.out.kernel", "o i -> i o", config),
    ]


def _layer(name: str, path: str, pattern: str, config: Qwen3Config, **sizes: int) -> Rule:
    return rule(
        f"model.layers.{{i}}.{name}.weight",
        f"layers.{path}",
        pattern,
        layers=config.layers,
        **sizes,
    )
