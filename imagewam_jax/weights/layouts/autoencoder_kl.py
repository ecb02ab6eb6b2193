"""Tensors of an `AutoencoderKL` as `diffusers` names them (docs/spec/imagewam_omnigen2.md, 3)."""

from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.autoencoders.kl import FLUX1, SDXL, AutoencoderKLConfig
from imagewam_jax.weights.layouts.flux2_autoencoder import convolutional_rules
from imagewam_jax.weights.layouts.flux2_autoencoder_diffusers import (
    ASSUMED,
    SIZES,
    diffusers_json,
    diffusers_names,
    diffusers_sizes,
)
from imagewam_jax.weights.layouts.mapping import Rule
from imagewam_jax.weights.layouts.metadata import Metadata, Specs, agree, find

CLASS = "AutoencoderKL"
# In a recording, and in the config.json of Ovis-U1; that of diffusers is not in a section.
SECTIONS = ("vae_config", "visual_generator_config.vae_config")


def autoencoder_kl_config(specs: Specs, metadata: Metadata) -> AutoencoderKLConfig:
    """Sizes from shapes; groups, scale and shift from `metadata`, or where it says nothing those of
    FLUX.1, with convolutions around the latent those of SDXL. ConversionError: it contradicts the
    shapes, or is of another network."""
    given = _given(metadata)
    sizes = {**diffusers_sizes(specs), "has_quantizers": "quant_conv.weight" in specs}
    default = SDXL if sizes["has_quantizers"] else FLUX1
    names = {**SIZES, "has_quantizers": "use_quant_conv"}
    where = "the autoencoder's config"
    agree(sizes, {ours: given(theirs) for ours, theirs in names.items()}, where)
    agree(ASSUMED, {name: given(name) for name in ASSUMED}, where)
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
    return {
        "_class_name": CLASS,
        **diffusers_json(config),
        "scaling_factor": config.scale,
        "shift_factor": config.shift or None,
        "force_upcast": False,
    }


def _given(metadata: Metadata):
    """A function that finds a value of the autoencoder's config by its official name."""
    return lambda name: find(metadata, *(f"{section}.{name}" for section in SECTIONS), name)
