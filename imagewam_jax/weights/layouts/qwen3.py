"""Qwen3 tensors under their Hugging Face names (docs/spec/imagewam_flux2.md, 3.2).

Linear weights are `[out, in]` in this layout and `[in, out]` in our tree. A checkpoint of the
whole language model has more than the encoder: the tensors behind the last layer that features are
taken after are left out by name, and a tensor of any other name is an error.
"""

import re

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.text_encoders.qwen3 import QWEN3_4B, QWEN3_8B, Qwen3Config
from imagewam_jax.weights.io.tensors import Renamed, TensorSource
from imagewam_jax.weights.layouts.mapping import TRANSPOSE, Rule, rule
from imagewam_jax.weights.layouts.metadata import (
    Metadata,
    Specs,
    agree,
    count,
    fill_from_preset,
    find,
    find_or,
    size,
)

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_AFTER_THE_LAYERS = ("model.norm.weight", "lm_head.weight")
# Properties of the network that no shape shows: the values that `config.json` must have.
_ASSUMED = {
    "model_type": "qwen3",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "use_sliding_window": False,
}


def qwen3_config(specs: Specs, metadata: Metadata) -> Qwen3Config:
    """The sizes, from shapes; `metadata` can hold the `config.json` of transformers.

    ConversionError: it describes another network, or the weights have too few layers.
    """
    first = "model.layers.0"
    dim, head_dim = (
        size(specs, "model.embed_tokens.weight", 1),
        size(specs, f"{first}.self_attn.q_norm.weight", 0),
    )
    sizes = {
        "vocab_size": size(specs, "model.embed_tokens.weight", 0),
        "dim": dim,
        "mlp_dim": size(specs, f"{first}.mlp.gate_proj.weight", 0),
        "heads": size(specs, f"{first}.self_attn.q_proj.weight", 0) // head_dim,
        "kv_heads": size(specs, f"{first}.self_attn.k_proj.weight", 0) // head_dim,
        "head_dim": head_dim,
    }
    names = {
        "vocab_size": "vocab_size",
        "dim": "hidden_size",
        "mlp_dim": "intermediate_size",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
    }
    found = {ours: find(metadata, theirs, f"qwen3.{theirs}") for ours, theirs in names.items()}
    agree(sizes, found, "config.json")
    agree(_ASSUMED, {name: find(metadata, name) for name in _ASSUMED}, "config.json")
    rope = find(metadata, "rope_scaling.rope_type", "rope_parameters.rope_type")
    agree({"rope_type": "default"}, {"rope_type": rope}, "config.json")
    theta = find(metadata, "rope_theta", "rope_parameters.rope_theta", "qwen3.rope_theta")
    theta = fill_from_preset(
        sizes, {"rope_theta": theta}, (QWEN3_4B, QWEN3_8B), "Qwen3 text encoder"
    )
    default = QWEN3_4B.feature_layers
    layers = find_or(metadata, default, "feature_layers", "selected_hidden_states")
    if not isinstance(layers, (list, tuple)) or not all(type(layer) is int for layer in layers):
        raise ConversionError(f"feature_layers is {layers!r}, expected numbers of layers")
    try:
        config = Qwen3Config(**sizes, **theta, feature_layers=tuple(layers))
    except ValueError as error:
        raise ConversionError(f"Qwen3 text encoder: {error}") from error
    there = count(specs, "model.layers.")
    if there < config.layers:
        raise ConversionError(
            f"this Qwen3 has {there} layers; features are taken after {config.feature_layers}"
        )
    return config


def is_used(name: str, config: Qwen3Config) -> bool:
    """Whether the features can depend on a tensor of the language model.

    True also for names that no Qwen3 has, so that they are reported as unexpected.
    """
    layer = _LAYER.match(name)
    if layer is not None:
        return int(layer[1]) < config.layers
    return name not in _AFTER_THE_LAYERS


def used(source: TensorSource, metadata: Metadata) -> TensorSource:
    """The tensors that the features depend on."""
    config = qwen3_config(source.specs, metadata)
    return Renamed(source, lambda name: name if is_used(name, config) else None)


def qwen3_rules(config: Qwen3Config) -> list[Rule]:
    """Map Hugging Face names to the tree of `models.text_encoders.qwen3.Qwen3`."""
    return [
        rule("model.embed_tokens.weight", "embedding", "v d -> v d"),
        _layer("input_layernorm", "attention_norm.scale", "d -> d", config),
        _layer("self_attn.q_proj", "q.kernel", TRANSPOSE, config),
        _layer("self_attn.k_proj", "k.kernel", TRANSPOSE, config),
        _layer("self_attn.v_proj", "v.kernel", TRANSPOSE, config),
        _layer("self_attn.q_norm", "q_norm.scale", "h -> h", config),
        _layer("self_attn.k_norm", "k_norm.scale", "h -> h", config),
        _layer("self_attn.o_proj", "out.kernel", TRANSPOSE, config),
        _layer("post_attention_layernorm", "mlp_norm.scale", "d -> d", config),
        _layer("mlp.gate_proj", "mlp.gate.kernel", TRANSPOSE, config),
        _layer("mlp.up_proj", "mlp.up.kernel", TRANSPOSE, config),
        _layer("mlp.down_proj", "mlp.out.kernel", TRANSPOSE, config),
    ]


def _layer(name: str, path: str, pattern: str, config: Qwen3Config) -> Rule:
    return rule(
        f"model.layers.{{i}}.{name}.weight", f"layers.{path}", pattern, layers=config.layers
    )
