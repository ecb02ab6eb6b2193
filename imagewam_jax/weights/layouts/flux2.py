"""FLUX.2 and expert tensors in the original layout (docs/spec/imagewam_flux2.md, 1.11 and 4.2).

Linear weights are `[out, in]` in this layout and `[in, out]` in our tree. The channels of each head
of q and k, and of their norms, have another order there (`PAIRS`).
"""

import math
from collections.abc import Mapping
from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import KLEIN_4B, KLEIN_9B, Flux2Config
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.weights.layouts.family import Family
from imagewam_jax.weights.layouts.mapping import TRANSPOSE, Rule, TensorSlice, rule
from imagewam_jax.weights.layouts.metadata import (
    Metadata,
    Specs,
    agree,
    count,
    fill_from_preset,
    find,
    find_or,
    section,
    size,
)

EXPERT_SECTIONS = ("action_dit_config", "model.action_dit_config")


def flux2_config(specs: Specs, metadata: Metadata) -> Flux2Config:
    """Sizes from shapes; RoPE from `metadata` or from klein of these sizes.

    ConversionError: a shape that tells a size is not there, or RoPE is not sizes.
    """
    if any(name.startswith("guidance_in.") for name in specs):
        raise ConversionError(
            "these weights have a guidance embedding (guidance_in), as FLUX.2 [dev] does; "
            "ImageWAM is made of FLUX.2 [klein], which has none"
        )
    dim = size(specs, "img_in.weight", 0)
    mlp_dim = size(specs, "double_blocks.0.img_mlp.2.weight", 1)
    head_dim = size(specs, "double_blocks.0.img_attn.norm.query_norm.scale", 0)
    sizes = {
        "in_channels": size(specs, "img_in.weight", 1),
        "text_dim": size(specs, "txt_in.weight", 1),
        "dim": dim,
        "heads": dim // head_dim,
        "double_layers": count(specs, "double_blocks."),
        "single_layers": count(specs, "single_blocks."),
        "mlp_ratio": mlp_ratio(mlp_dim, dim),
    }
    given = section(metadata, "flux2_params")
    names = {
        "in_channels": "in_channels",
        "text_dim": "context_in_dim",
        "dim": "hidden_size",
        "heads": "num_heads",
        "double_layers": "depth",
        "single_layers": "depth_single_blocks",
        "mlp_ratio": "mlp_ratio",
    }
    found = {ours: given.get(theirs) for ours, theirs in names.items()}
    found["mlp_ratio"] = exact_ratio(found["mlp_ratio"], mlp_dim, dim)
    agree(sizes, found, "flux2_params")
    rope = {
        "rope_axes": find(metadata, "rope_axes", "flux2_params.axes_dim"),
        "rope_theta": find(metadata, "rope_theta", "flux2_params.theta"),
    }
    return with_klein_rope(sizes, rope)


def mlp_ratio(mlp_dim: int, dim: int) -> float:
    """The ratio of an MLP's inner width to the model's width.

    Other code truncates `dim * ratio` to an integer, for which the nearest float can be too small.
    """
    ratio = mlp_dim / dim
    return ratio if int(dim * ratio) == mlp_dim else math.nextafter(ratio, math.inf)


def exact_ratio(given: Any, mlp_dim: int, dim: int) -> Any:
    """The ratio of a config, which can be rounded: replaced by `mlp_ratio` if it means the same
    widths."""
    number = isinstance(given, (int, float))
    return mlp_ratio(mlp_dim, dim) if number and abs(dim * given - mlp_dim) < 1 else given


def with_klein_rope(sizes: Mapping[str, Any], rope: Mapping[str, Any]) -> Flux2Config:
    """The config of sizes sizes, with RoPE as given or as klein of these sizes has it."""
    rope = fill_from_preset(sizes, rope, (KLEIN_4B, KLEIN_9B), "FLUX.2 transformer")
    try:
        return Flux2Config(**sizes, **rope)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"FLUX.2 transformer: {error}") from error


def expert_config(specs: Specs, metadata: Metadata) -> ActionExpertConfig:
    """The sizes of an action expert, from the shapes of its tensors."""
    return expert_sizes(specs, metadata, size(specs, "double_blocks.0.img_mlp.2.weight", 1))


def expert_sizes(specs: Specs, metadata: Metadata, mlp_dim: int) -> ActionExpertConfig:
    """The sizes of an action expert of any family, whose MLPs are `mlp_dim` wide within."""
    dim, default = size(specs, "action_encoder.weight", 0), ActionExpertConfig.max_horizon
    keys = "max_horizon", *in_expert_sections("max_action_horizon")
    return ActionExpertConfig(
        action_dim=size(specs, "action_encoder.weight", 1),
        dim=dim,
        mlp_ratio=mlp_ratio(mlp_dim, dim),
        max_horizon=find_or(metadata, default, *keys),
    )


def initial_expert_config(metadata: Metadata) -> ActionExpertConfig:
    """The sizes of an expert that is still to be made: from `metadata`, else the official ones."""
    keys = {
        "dim": ("expert_dim", *in_expert_sections("hidden_dim")),
        "mlp_ratio": ("expert_mlp_ratio", *in_expert_sections("mlp_ratio")),
        "max_horizon": ("max_horizon", *in_expert_sections("max_action_horizon")),
    }
    found = {name: find(metadata, *names) for name, names in keys.items()}
    return ActionExpertConfig(**{k: v for k, v in found.items() if v is not None})


def check_expert(expert: ActionExpertConfig, backbone: Flux2Config, metadata: Metadata) -> None:
    """ConversionError: the training config has another expert than the tensors."""
    given = section(metadata, "model.action_dit_config", "action_dit_config")
    sizes = expert_settings(expert, backbone)
    found = {name: given.get(name) for name in sizes}
    found["mlp_ratio"] = exact_ratio(found["mlp_ratio"], expert.mlp_dim, expert.dim)
    agree(sizes, found, "action_dit_config")


def expert_settings(expert: ActionExpertConfig, backbone: Flux2Config) -> dict[str, Any]:
    """What the official training config says of the expert, besides its limit."""
    return {
        "action_dim": expert.action_dim,
        "hidden_dim": expert.dim,
        "num_heads": backbone.heads,
        "attn_head_dim": backbone.head_dim,
        "num_layers_double": backbone.double_layers,
        "num_layers_single": backbone.single_layers,
        "mlp_ratio": expert.mlp_ratio,
    }


def settings(config: ImageWAMConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an official training config says of the expert and of the transformer."""
    expert, backbone = config.expert, config.backbone
    of_expert = {
        **expert_settings(expert, backbone),
        "max_action_horizon": expert.max_horizon,
    }
    of_transformer = {
        "in_channels": backbone.in_channels,
        "context_in_dim": backbone.text_dim,
        "hidden_size": backbone.dim,
        "num_heads": backbone.heads,
        "depth": backbone.double_layers,
        "depth_single_blocks": backbone.single_layers,
        "axes_dim": list(backbone.rope_axes),
        "theta": backbone.rope_theta,
        "mlp_ratio": backbone.mlp_ratio,
        "use_guidance_embed": False,
    }
    model = {"flux2_lora_config": {"enabled": False}, "action_dit_config": of_expert}
    return model, {"flux2_params": of_transformer}


def in_expert_sections(name: str) -> tuple[str, ...]:
    """The keys that a setting of the expert can have in an official training config."""
    return tuple(f"{section}.{name}" for section in EXPERT_SECTIONS)


def flux2_rules(config: Flux2Config) -> list[Rule]:
    """Map original FLUX.2 names to the tree of `models.backbones.flux2.Flux2`."""
    sizes = head_sizes(config)
    double, single = config.group_sizes
    rules = [
        rule("img_in.weight", "image_in.kernel", TRANSPOSE),
        rule("txt_in.weight", "text_in.kernel", TRANSPOSE),
        *_time_rules(),
        modulation_rule("double_stream_modulation_img.lin.weight", "double_modulation_image", 2),
        modulation_rule("double_stream_modulation_txt.lin.weight", "double_modulation_text", 2),
        modulation_rule("single_stream_modulation.lin.weight", "single_modulation", 1),
        *_head_rules("final_layer"),
    ]
    for short, ours in (("img", "image"), ("txt", "text")):
        rules += _sequential(short, f"double_layers.{ours}", double, sizes, config.mlp_dim)
    return rules + _parallel("single_layers.block", single, sizes, config.mlp_dim)


def action_expert_rules(config: ActionExpertConfig, backbone: Flux2Config) -> list[Rule]:
    """Map official expert names to the tree of `models.action_expert.ActionExpert`."""
    sizes = head_sizes(backbone)
    double, single = backbone.group_sizes
    return [
        rule("action_encoder.weight", "action_in.kernel", TRANSPOSE),
        rule("action_encoder.bias", "action_in.bias", "o -> o"),
        *_time_rules(),
        modulation_rule("double_stream_modulation_img.lin.weight", "double_modulation", 2),
        modulation_rule("single_stream_modulation.lin.weight", "single_modulation", 1),
        *_head_rules("head"),
        *_sequential("img", "double_layers", double, sizes, config.mlp_dim),
        *_parallel("single_layers", single, sizes, config.mlp_dim),
    ]


def _time_rules() -> list[Rule]:
    return [
        rule("time_in.in_layer.weight", "time_in.wi.kernel", TRANSPOSE),
        rule("time_in.out_layer.weight", "time_in.wo.kernel", TRANSPOSE),
    ]


def modulation_rule(name: str, path: str, branches: int) -> Rule:
    """A modulation's kernel. The pattern is a transpose that names the bands of the rows, which
    `action_init` keeps apart where it narrows the kernel."""
    pattern = "(branch three o) i -> i (branch three o)"
    return rule(name, f"{path}.linear.kernel", pattern, branch=branches, three=3)


def _head_rules(name: str) -> list[Rule]:
    pattern = "(two o) i -> i (two o)"
    return [
        rule(f"{name}.adaLN_modulation.1.weight", "head.modulation.kernel", pattern, two=2),
        rule(f"{name}.linear.weight", "head.linear.kernel", TRANSPOSE),
    ]


# Officially the channels of a head are turned in adjacent pairs; `layers.rotate` turns the first
# half of them against the second.
PAIRS = "(n pair two) i -> i (n two pair)"
NORM_PAIRS = "(pair two) -> (two pair)"


def head_sizes(config: Flux2Config) -> dict[str, int]:
    """The sizes of the axes of `PAIRS`: heads, pairs of channels in one, and two."""
    return {"n": config.heads, "pair": config.head_dim // 2, "two": 2}


def _sequential(short: str, path: str, layers: int, sizes: dict[str, int], mlp: int) -> list[Rule]:
    block = f"double_blocks.{{i}}.{short}"
    return [
        Rule(f"{block}_attn.qkv.weight", qkv_slices(path, sizes), layers=layers),
        *norm_rules(f"{block}_attn.norm", path, layers),
        rule(f"{block}_attn.proj.weight", f"{path}.out.kernel", TRANSPOSE, layers=layers),
        Rule(f"{block}_mlp.0.weight", gate_up_slices(path, mlp), layers=layers),
        rule(f"{block}_mlp.2.weight", f"{path}.mlp.out.kernel", TRANSPOSE, layers=layers),
    ]


def _parallel(path: str, layers: int, sizes: dict[str, int], mlp: int) -> list[Rule]:
    """A parallel block: `linear1` has the rows of q, k, v, then of the MLP; `linear2` has the
    columns of both outputs."""
    block = "single_blocks.{i}"
    return [
        Rule(
            f"{block}.linear1.weight",
            (*qkv_slices(path, sizes), *gate_up_slices(path, mlp)),
            layers=layers,
        ),
        Rule(f"{block}.linear2.weight", out_slices(path, sizes, mlp), axis=1, layers=layers),
        *norm_rules(f"{block}.norm", path, layers),
    ]


def qkv_slices(path: str, sizes: dict[str, int]) -> tuple[TensorSlice, ...]:
    width = math.prod(sizes.values())
    return (
        TensorSlice(f"{path}.q.kernel", PAIRS, sizes, width),
        TensorSlice(f"{path}.k.kernel", PAIRS, sizes, width),
        TensorSlice(f"{path}.v.kernel", TRANSPOSE, width=width),
    )


def out_slices(path: str, sizes: dict[str, int], mlp: int) -> tuple[TensorSlice, TensorSlice]:
    """The columns of a parallel block's two outputs: attention, then MLP."""
    return (
        TensorSlice(f"{path}.out.kernel", TRANSPOSE, width=math.prod(sizes.values())),
        TensorSlice(f"{path}.mlp.out.kernel", TRANSPOSE, width=mlp),
    )


def gate_up_slices(path: str, mlp: int) -> tuple[TensorSlice, ...]:
    names = (f"{path}.mlp.{name}.kernel" for name in ("gate", "up"))
    return tuple(TensorSlice(name, TRANSPOSE, width=mlp) for name in names)


def norm_rules(name: str, path: str, layers: int) -> list[Rule]:
    """The scales of the norms of q and k."""
    return [
        norm_rule(f"{name}.query_norm.scale", f"{path}.q_norm.scale", layers),
        norm_rule(f"{name}.key_norm.scale", f"{path}.k_norm.scale", layers),
    ]


def norm_rule(name: str, path: str, layers: int) -> Rule:
    """The scale of the norm of q or k."""
    return rule(name, path, NORM_PAIRS, layers=layers, two=2)


FLUX2 = Family(
    title="FLUX.2",
    backbone=Flux2Config,
    factory="create_imagewam_flux2_klein",
    first="img_in.weight",
    expert=("double_stream_modulation_img.lin.weight", "single_blocks.0.linear1.weight"),
    aliases={"double_blocks.": "double_blocks.", "single_blocks.": "single_blocks."},
    modules=(
        (
            "img_in",
            "time_in",
            "txt_in",
            "double_blocks",
            "single_blocks",
            "double_stream_modulation_img",
            "double_stream_modulation_txt",
            "single_stream_modulation",
            "final_layer.linear",
            "final_layer.adaLN_modulation",
        ),
        (
            "action_encoder",
            "time_in",
            "double_stream_modulation_img",
            "single_stream_modulation",
            "double_blocks",
            "single_blocks",
            "head.linear",
            "head.adaLN_modulation",
        ),
    ),
    transformer_config=flux2_config,
    transformer_rules=flux2_rules,
    expert_config=expert_config,
    expert_rules=action_expert_rules,
    check_expert=check_expert,
    initial_name=lambda name: name,
    scaled=True,
    initial_config=lambda metadata, backbone: initial_expert_config(metadata),
    unpacked="elsewhere",
    settings=settings,
)
