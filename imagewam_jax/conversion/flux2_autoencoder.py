"""FLUX.2 autoencoder tensors in the original layout (spec imagewam_flux2, 2.3).

Convolutions are `[out, in, row, column]` there and `[row, column, in, out]` here; those of one
pixel are matrices here.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

from imagewam_jax.conversion.mapping import Rule, rule, to_tree
from imagewam_jax.models.autoencoders.flux2 import Flux2AutoencoderConfig

IGNORED = ("bn.num_batches_tracked",)  # a training counter that nothing reads


def flux2_autoencoder_tree(
    config: Flux2AutoencoderConfig,
    tensors: Mapping[str, np.ndarray],
    like: Mapping[str, Any],
    what: str,
) -> dict[str, Any]:
    """Parameters of `Flux2Autoencoder`; arguments and errors are those of `mapping.to_tree`."""
    tensors = {name: t for name, t in tensors.items() if name not in IGNORED}
    return to_tree(flux2_autoencoder_rules(config), tensors, like, what)


def flux2_autoencoder_rules(config: Flux2AutoencoderConfig) -> list[Rule]:
    """Original names to the tree of `models.autoencoders.flux2.Flux2Autoencoder`."""
    levels = len(config.widths)
    rules = [
        rule("bn.running_mean", "mean", "c -> c"),
        rule("bn.running_var", "variance", "c -> c"),
        *_pointwise("encoder.quant_conv", "encoder.quantize"),
        *_pointwise("decoder.post_quant_conv", "decoder.dequantize"),
    ]
    for side in ("encoder", "decoder"):
        rules += _conv(f"{side}.conv_in", f"{side}.conv_in")
        rules += _middle(f"{side}.mid", f"{side}.middle")
        rules += _norm(f"{side}.norm_out", f"{side}.norm_out")
        rules += _conv(f"{side}.conv_out", f"{side}.conv_out")
    # Theirs are numbered by resolution, ours by the order in which they are run.
    for i, changes in enumerate(_changes(config.width, *config.widths)):
        name, path = f"encoder.down.{i}", f"encoder.levels.{i}"
        rules += _blocks(name, path, config.blocks, changes)
        if i < levels - 1:
            rules += _conv(f"{name}.downsample.conv", f"{path}.resample.conv")
    for i, changes in enumerate(_changes(config.widths[-1], *config.widths[::-1])):
        name, path = f"decoder.up.{levels - 1 - i}", f"decoder.levels.{i}"
        rules += _blocks(name, path, config.blocks + 1, changes)
        if i < levels - 1:
            rules += _conv(f"{name}.upsample.conv", f"{path}.resample.conv")
    return rules


def _changes(*widths: int) -> list[bool]:
    """Of each width but the first: whether it differs from the one before."""
    return [before != after for before, after in pairwise(widths)]


def _blocks(name: str, path: str, count: int, has_shortcut: bool) -> list[Rule]:
    rules = []
    for i in range(count):
        rules += _residual(f"{name}.block.{i}", f"{path}.blocks.{i}")
    if has_shortcut:
        rules += _pointwise(f"{name}.block.0.nin_shortcut", f"{path}.blocks.0.shortcut")
    return rules


def _middle(name: str, path: str) -> list[Rule]:
    attention = f"{name}.attn_1"
    rules = [
        *_residual(f"{name}.block_1", f"{path}.before"),
        *_residual(f"{name}.block_2", f"{path}.after"),
        *_norm(f"{attention}.norm", f"{path}.attention.norm"),
    ]
    for theirs, ours in (("q", "q"), ("k", "k"), ("v", "v"), ("proj_out", "out")):
        rules += _pointwise(f"{attention}.{theirs}", f"{path}.attention.{ours}")
    return rules


def _residual(name: str, path: str) -> list[Rule]:
    return [
        *_norm(f"{name}.norm1", f"{path}.norm1"),
        *_conv(f"{name}.conv1", f"{path}.conv1"),
        *_norm(f"{name}.norm2", f"{path}.norm2"),
        *_conv(f"{name}.conv2", f"{path}.conv2"),
    ]


def _conv(name: str, path: str) -> list[Rule]:
    return _weight_and_bias(name, path, "kernel", "o i y x -> y x i o")


def _pointwise(name: str, path: str) -> list[Rule]:
    return _weight_and_bias(name, path, "kernel", "o i 1 1 -> i o")


def _norm(name: str, path: str) -> list[Rule]:
    return _weight_and_bias(name, path, "scale", "c -> c")


def _weight_and_bias(name: str, path: str, weight: str, pattern: str) -> list[Rule]:
    return [
        rule(f"{name}.weight", f"{path}.{weight}", pattern),
        rule(f"{name}.bias", f"{path}.bias", "o -> o"),
    ]
