"""A text encoder: the features of token ids, and the hidden states that they consist of."""

import dataclasses
import re
from collections.abc import Iterator

import jax
import numpy as np

from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import (
    Kind,
    NotChecked,
    Output,
    Sizes,
    having,
    run_once,
    valid_lengths,
)
from imagewam_jax.parity.cases.folder import Folder
from imagewam_jax.parity.cases.loaded import Loaded

SIGNATURE = ("input_ids", "attention_mask")
_STATE = re.compile(r"hidden_states\.(\d+)")

_features = run_once(lambda model, ids, length_b: model(ids, length_b))


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """Features at every token, also at padding: the official cache of features has them all."""
    model, io = loaded.module("text_encoder"), folder.need(*SIGNATURE)
    ids, config = io["input_ids"], model.config
    recorded = [int(m[1]) for name in io if (m := _STATE.fullmatch(name))]
    for layer in sorted(n for n in recorded if n > config.layers):
        yield NotChecked(
            f"hidden_states.{layer}",
            f"the encoder ends with layer {config.layers}, the last that features are taken after",
        )
    inside = {n for n in recorded if 0 < n <= config.layers}
    layers = tuple(sorted({*config.feature_layers, *inside}))
    every = jax.tree.map(lambda x: x, model)  # the same parameters, with more feature layers
    every.config = dataclasses.replace(config, feature_layers=layers)
    features = np.asarray(_features(every, ids, valid_lengths(io, "attention_mask")))
    states = dict(zip(layers, np.split(features, len(layers), axis=-1), strict=True))
    for layer, state in states.items():
        yield Output(f"hidden_states.{layer}", state, limits.TEXT)
    yield Output("hidden_states.0", model.embedding[...][ids], limits.EQUAL)
    stacked = np.concatenate([states[layer] for layer in config.feature_layers], axis=-1)
    yield Output("text_hidden_states", stacked, limits.TEXT)


def _inputs(
    loaded: Loaded, folder: Folder, sizes: Sizes, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    mask = np.arange(sizes.text_tokens) < sizes.text_lengths[:, None]
    ids = rng.integers(0, loaded.config("text_encoder").vocab_size, mask.shape)
    return {"input_ids": ids, "attention_mask": mask.astype(np.int64), "text_attention_mask": mask}


TEXT_ENCODER = Kind(
    name="text encoder",
    part="text_encoder",
    file="io.safetensors",
    find=having(*SIGNATURE),
    outputs=_outputs,
    inputs=_inputs,
    case="text_encoder",
)
