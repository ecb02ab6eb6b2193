"""FLUX.2 autoencoder tensors as `diffusers` names them (docs/spec/imagewam_flux2.md, 2.3).

The tensors are those of the original layout under other names; the decoder's levels are numbered in
the opposite order, and the attention's projections are matrices.
"""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from imagewam_jax.models.autoencoders.convolutional import Sizes
from imagewam_jax.models.autoencoders.flux2 import (
    PATCH,
    STATISTICS_EPS,
    Flux2AutoencoderConfig,
)
from imagewam_jax.weights.layouts.flux2_autoencoder import flux2_autoencoder_rules
from imagewam_jax.weights.layouts.mapping import TRANSPOSE, Rule, TensorSlice
from imagewam_jax.weights.layouts.metadata import Metadata, Specs, agree, count, find, size

CLASS = "AutoencoderKLFlux2"
# What shapes tell of every autoencoder: name of ours -> that in a `config.json`.
SIZES = {
    "widths": "block_out_channels",
    "blocks": "layers_per_block",
    "latent_channels": "latent_channels",
}
# Properties of the network that no shape shows.
ASSUMED = {"act_fn": "silu", "mid_block_add_attention": True}
_NAMES = (
    (r"^encoder\.quant_conv\.", "quant_conv."),
    (r"^decoder\.post_quant_conv\.", "post_quant_conv."),
    (r"\.norm_out\.", ".conv_norm_out."),
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
)
_UP = re.compile(r"^decoder\.up\.(\d+)\.")


def flux2_autoencoder_diffusers_config(specs: Specs, metadata: Metadata) -> Flux2AutoencoderConfig:
    """The sizes, all from shapes; `metadata` can hold the `config.json` of diffusers."""
    width, sizes = size(specs, "encoder.conv_in.weight", 0), diffusers_sizes(specs)
    config = Flux2AutoencoderConfig(
        width=width,
        width_multipliers=tuple(w // width for w in sizes["widths"]),
        blocks=sizes["blocks"],
        latent_channels=sizes["latent_channels"],
    )
    sizes |= {"groups": config.groups, "patch": [PATCH, PATCH], "eps": STATISTICS_EPS}
    names = {
        **SIZES,
        "groups": "norm_num_groups",
        "patch": "patch_size",
        "eps": "batch_norm_eps",
    }
    agree(sizes, {ours: find(metadata, theirs) for ours, theirs in names.items()}, "config.json")
    return config


def flux2_autoencoder_diffusers_rules(config: Flux2AutoencoderConfig) -> list[Rule]:
    """Map names of diffusers to the tree of `models.autoencoders.flux2.Flux2Autoencoder`."""
    return diffusers_names(flux2_autoencoder_rules(config), len(config.widths))


def flux2_autoencoder_diffusers_json(config: Flux2AutoencoderConfig) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the autoencoder."""
    return {
        "_class_name": CLASS,
        **diffusers_json(config),
        "batch_norm_eps": STATISTICS_EPS,
        "batch_norm_momentum": 0.1,
        "patch_size": [PATCH, PATCH],
    }


def diffusers_sizes(specs: Specs) -> dict[str, Any]:
    """`SIZES` from the shapes of an autoencoder's tensors, in the form that `config.json` has."""
    levels = range(count(specs, "encoder.down_blocks."))
    return {
        "widths": [
            size(specs, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in levels
        ],
        "blocks": count(specs, "encoder.down_blocks.0.resnets."),
        "latent_channels": size(specs, "decoder.conv_in.weight", 1),
    }


def diffusers_json(config: Sizes) -> dict[str, Any]:
    """What the `config.json` of every autoencoder has."""
    levels = len(config.widths)
    return {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.groups,
        **ASSUMED,
        "sample_size": 1024,
        "use_quant_conv": config.has_quantizers,
        "use_post_quant_conv": config.has_quantizers,
    }


def diffusers_names(rules: Iterable[Rule], levels: int) -> list[Rule]:
    """Rules of the original layout under the names of diffusers."""
    return [_renamed(r, levels - 1) for r in rules]


def _renamed(r: Rule, last: int) -> Rule:
    name = _UP.sub(lambda m: f"decoder.up.{last - int(m[1])}.", r.name)
    slices = r.slices
    if ".mid.attn_1." in name and name.endswith("weight") and ".norm." not in name:
        slices = (TensorSlice(slices[0].path, TRANSPOSE),)
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return dataclasses.replace(r, name=name, slices=slices)
