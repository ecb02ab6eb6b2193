"""FLUX.2 autoencoder tensors in the original layout (docs/spec/imagewam_flux2.md, 2.3).

Convolutions are `[out, in, row, column]` in this layout and `[row, column, in, out]` in our tree,
where 1 x 1 convolutions are matrices.
"""

from itertools import pairwise

from imagewam_jax.models.autoencoders.convolutional import Sizes
from imagewam_jax.models.autoencoders.flux2 import Flux2AutoencoderConfig
from imagewam_jax.weights.layouts.mapping import Rule, rule
from imagewam_jax.weights.layouts.metadata import Metadata, Specs, agree, count, section, size

COUNTER = "bn.num_batches_tracked"  # counts training batches; nothing reads it


def flux2_autoencoder_config(specs: Specs, metadata: Metadata) -> Flux2AutoencoderConfig:
    """The sizes, all from shapes."""
    width = size(specs, "encoder.conv_in.weight", 0)
    levels = range(count(specs, "encoder.down."))
    config = Flux2AutoencoderConfig(
        width=width,
        width_multipliers=tuple(
            size(specs, f"encoder.down.{i}.block.0.conv1.weight", 0) // width for i in levels
        ),
        blocks=count(specs, "encoder.down.0.block."),
        latent_channels=size(specs, "decoder.conv_in.weight", 1),
    )
    given = section(metadata, "autoencoder_params")
    names = {"width": "ch", "blocks": "num_res_blocks", "latent_channels": "z_channels"}
    found = {ours: given.get(theirs) for ours, theirs in names.items()}
    agree(vars(config), found, "autoencoder_params")
    return config


def flux2_autoencoder_rules(config: Flux2AutoencoderConfig) -> list[Rule]:
    """Map original names to the tree of `models.autoencoders.flux2.Flux2Autoencoder`."""
    return [
        rule("bn.running_mean", "mean", "c -> c"),
        rule("bn.running_var", "variance", "c -> c"),
        *convolutional_rules(config),
    ]


def convolutional_rules(config: Sizes) -> list[Rule]:
    """The rules of encoder and decoder, which other autoencoders have too."""
    levels, rules = len(config.widths), []
    if config.has_quantizers:
        rules += _pointwise("encoder.quant_conv", "encoder.quantize")
        rules += _pointwise("decoder.post_quant_conv", "decoder.dequantize")
    for side in ("encoder", "decoder"):
        rules += _conv(f"{side}.conv_in", f"{side}.conv_in")
        rules += _middle(f"{side}.mid", f"{side}.middle")
        rules += _norm(f"{side}.norm_out", f"{side}.norm_out")
        rules += _conv(f"{side}.conv_out", f"{side}.conv_out")
    # This layout numbers levels by resolution, our tree by the order in which they run.
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
    """For each width but the first, whether it differs from the one before."""
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
