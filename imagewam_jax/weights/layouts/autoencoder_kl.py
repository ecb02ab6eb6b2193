"""Tensors of an `AutoencoderKL` as `diffusers` names them (docs/spec/imagewam_omnigen2.md, 3)."""

from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.autoencoders.kl import AutoencoderKLConfig
from imagewam_jax.weights.layouts.flux2_autoencoder import convolutional_rules
from imagewam_jax.weights.layouts.flux2_autoencoder_diffusers import diffusers_names
from imagewam_jax.weights.layouts.mapping import Rule
from imagewam_jax.weights.layouts.metadata import Metadata, Specs, agree, count, find, size

CLASS = "AutoencoderKL"
SECTION = "vae_config"  # in a recording; the config.json of diffusers is not in a section
# Properties of the network that no shape shows: the values that the config must have.
_ASSUMED = {"act_fn": "silu", "mid_block_add_attention": True}


def autoencoder_kl_config(specs: Specs, metadata: Metadata) -> AutoencoderKLConfig:
    """Sizes from shapes; groups, scale and shift from `metadata`, or those of FLUX.1 where it says
    nothing. ConversionError: it contradicts the shapes, or is of another network."""
    levels = range(count(specs, "encoder.down_blocks."))
    default, given = AutoencoderKLConfig(), _given(metadata)
    sizes = {
        "widths": tuple(
            size(specs, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 0) for i in levels
        ),
        "blocks": count(specs, "encoder.down_blocks.0.resnets."),
        "latent_channels": size(specs, "decoder.conv_in.weight", 1),
        "has_quantizers": "quant_conv.weight" in specs,
    }
    names = {
        "widths": "block_out_channels",
        "blocks": "layers_per_block",
        "latent_channels": "latent_channels",
        "has_quantizers": "use_quant_conv",
    }
    found = {ours: given(theirs) for ours, theirs in names.items()}
    if isinstance(found["widths"], list):
        found["widths"] = tuple(found["widths"])
    where = "the autoencoder's config"
    agree(sizes, found, where)
    agree(_ASSUMED, {name: given(name) for name in _ASSUMED}, where)
    groups, scale = given("norm_num_groups"), given("scaling_factor")
    shift = given("shift_factor")
    if shift is None:  # a config that has a scale and no shift is of a model that has none
        shift = default.shift if scale is None else 0.0
    try:
        return AutoencoderKLConfig(
            **sizes,
            groups=default.groups if groups is None else groups,
            scale=default.scale if scale is None else float(scale),
            shift=float(shift),
        )
    except (TypeError, ValueError) as error:
        raise ConversionError(f"{where}: {error}") from error


def autoencoder_kl_rules(config: AutoencoderKLConfig) -> list[Rule]:
    """Map names of diffusers to the tree of `models.autoencoders.kl.AutoencoderKL`."""
    return diffusers_names(convolutional_rules(config), len(config.widths))


def autoencoder_kl_json(config: AutoencoderKLConfig) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the autoencoder."""
    levels = len(config.widths)
    return {
        "_class_name": CLASS,
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.widths),
        "layers_per_block": config.blocks,
        **_ASSUMED,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.groups,
        "sample_size": 1024,
        "scaling_factor": config.scale,
        "shift_factor": config.shift,
        "force_upcast": False,
        "use_quant_conv": config.has_quantizers,
        "use_post_quant_conv": config.has_quantizers,
    }


def _given(metadata: Metadata):
    """A function that finds a value of the autoencoder's config by its official name."""
    return lambda name: find(metadata, f"{SECTION}.{name}", name)
