"""Tensors of Ovis-U1's transformer, and of its expert (docs/spec/imagewam_ovis_u1.md, 6 and 7).

The transformer has the same names in the released model, below a prefix, and in an official
checkpoint. Linear weights are `[out, in]` there and `[in, out]` in our tree. The channels of each
head of q and k, of their biases and norms, have another order there (`flux2.PAIRS`), except in the
text's refiner, which rotates nothing.

An official expert has the text's part of double blocks, which nothing reads. It is kept like all
other tensors, so that what was read can be written again.
"""

from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.ovis_u1 import OVIS_U1 as RELEASED
from imagewam_jax.models.backbones.ovis_u1 import OvisU1Config
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.weights.layouts.family import Family
from imagewam_jax.weights.layouts.flux2 import (
    EXPERT_SECTIONS,
    exact_ratio,
    expert_sizes,
    head_sizes,
    in_expert_sections,
    mlp_ratio,
    norm_rules,
    qkv_slices,
)
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

SECTION = "yak_config"  # in a recording
SECTIONS = (SECTION, "visual_generator_config")  # the latter in the config.json of Ovis-U1
REFINER = "txt_in.individual_token_refiner.blocks."
# name of ours -> the official one
_SIZES = {
    "in_channels": "in_channels",
    "text_dim": "context_in_dim",
    "dim": "hidden_size",
    "heads": "num_heads",
    "double_layers": "depth",
    "single_layers": "depth_single_blocks",
    "mlp_ratio": "mlp_ratio",
}


def ovis_u1_config(specs: Specs, metadata: Metadata) -> OvisU1Config:
    """Sizes from shapes; positions from `metadata`, or from the released model of these sizes.

    ConversionError: a shape that tells a size is not there, or the files contradict it.
    """
    dim = size(specs, "img_in.weight", 0)
    mlp_dim = size(specs, "double_blocks.0.img_mlp.0.weight", 0)
    sizes = {
        "in_channels": size(specs, "img_in.weight", 1),
        "text_dim": size(specs, "txt_in.input_embedder.weight", 1),
        "dim": dim,
        "heads": dim // size(specs, "double_blocks.0.img_attn.norm.query_norm.scale", 0),
        "double_layers": count(specs, "double_blocks."),
        "single_layers": count(specs, "single_blocks."),
        "mlp_ratio": mlp_ratio(mlp_dim, dim),
        "refiner_layers": count(specs, REFINER),
        "refiner_mlp_ratio": mlp_ratio(size(specs, f"{REFINER}0.mlp.fc1.weight", 0), dim),
    }
    given = {ours: _given(metadata, theirs) for ours, theirs in _SIZES.items()}
    given["mlp_ratio"] = exact_ratio(given["mlp_ratio"], mlp_dim, dim)
    agree(sizes, given, SECTION)
    others = {"out_channels": sizes["in_channels"], "vec_in_dim": dim, "guidance_embed": False}
    agree(others, {name: _given(metadata, name) for name in others}, SECTION)
    refiner = {"heads": 2 * sizes["heads"], "depth": sizes["refiner_layers"]}
    agree(refiner, {name: find(metadata, f"txt_refiner.{name}") for name in refiner}, "txt_refiner")
    rope = {
        "rope_axes": find(metadata, "rope_axes", *_keys("axes_dim")),
        "rope_theta": find(metadata, "rope_theta", *_keys("theta")),
    }
    rope = fill_from_preset(sizes, rope, (RELEASED,), "Ovis-U1 transformer")
    try:
        return OvisU1Config(**sizes, **rope)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"Ovis-U1 transformer: {error}") from error


def ovis_u1_rules(config: OvisU1Config) -> list[Rule]:
    """Map official names to the tree of `models.backbones.ovis_u1.OvisU1`."""
    return [
        *_linear("img_in", "image_in"),
        *_two_layers("time_in", "time_in"),
        *_two_layers("vector_in", "class_in"),
        rule("txt_in.cls_token", "refiner.class_token", "1 1 o -> o"),
        *_linear("txt_in.input_embedder", "refiner.text_in"),
        *_linear("txt_in.c_embedder.linear_1", "refiner.mean_in.wi"),
        *_linear("txt_in.c_embedder.linear_2", "refiner.mean_in.wo"),
        *_refiner(config),
        *_blocks(config, config),
        *_head("final_layer"),
    ]


def expert_config(specs: Specs, metadata: Metadata) -> ActionExpertConfig:
    """The sizes of an action expert, from the shapes of its tensors."""
    return expert_sizes(specs, metadata, size(specs, "double_blocks.0.img_mlp.0.weight", 0))


def initial_expert_config(metadata: Metadata, backbone: OvisU1Config) -> ActionExpertConfig:
    """The sizes of an expert that is still to be made: from `metadata`, else the official ones,
    which are those of the transformer."""
    default = ActionExpertConfig()
    keys = "max_horizon", *in_expert_sections("max_action_horizon")
    return ActionExpertConfig(
        dim=find_or(metadata, backbone.dim, "expert_dim"),
        mlp_ratio=find_or(
            metadata, backbone.mlp_ratio, "expert_mlp_ratio", *in_expert_sections("mlp_ratio")
        ),
        max_horizon=find_or(metadata, default.max_horizon, *keys),
    )


def expert_rules(config: ActionExpertConfig, backbone: OvisU1Config) -> list[Rule]:
    """Map official expert names to the tree of `models.backbones.ovis_u1.OvisU1Expert`."""
    return [
        *_linear("action_encoder", "action_in"),
        *_two_layers("time_in", "time_in"),
        *_blocks(config, backbone),
        *_head("head"),
    ]


def check_expert(expert: ActionExpertConfig, backbone: OvisU1Config, metadata: Metadata) -> None:
    """ConversionError: the training config has an expert of another action dimension.

    Width, heads and layers are not compared: the official code takes those of the transformer,
    whatever its training config says.
    """
    given = section(metadata, *EXPERT_SECTIONS)
    agree({"action_dim": expert.action_dim}, {"action_dim": given.get("action_dim")}, "the expert")


def settings(config: ImageWAMConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a training config says of the expert; and of the transformer, which the official one
    does not describe, but recordings do."""
    expert, backbone = config.expert, config.backbone
    of_expert = {
        "action_dim": expert.action_dim,
        "residual_dim": expert.dim,
        "num_heads": backbone.heads,
        "num_layers_double": backbone.double_layers,
        "num_layers_single": backbone.single_layers,
        "mlp_ratio": expert.mlp_ratio,
        "qkv_bias": True,
        "max_action_horizon": expert.max_horizon,
    }
    of_transformer = {
        **{theirs: getattr(backbone, ours) for ours, theirs in _SIZES.items()},
        "out_channels": backbone.in_channels,
        "vec_in_dim": backbone.dim,
        "axes_dim": list(backbone.rope_axes),
        "theta": backbone.rope_theta,
        "qkv_bias": True,
        "guidance_embed": False,
    }
    return {"action_dit_config": of_expert}, {SECTION: of_transformer}


def _keys(name: str) -> tuple[str, ...]:
    """The keys that a setting of the transformer can have."""
    return tuple(f"{section}.{name}" for section in SECTIONS)


def _given(metadata: Metadata, name: str) -> Any:
    return find(metadata, *_keys(name))


def _linear(name: str, path: str, layers: int | None = None) -> list[Rule]:
    return [
        rule(f"{name}.weight", f"{path}.kernel", TRANSPOSE, layers=layers),
        rule(f"{name}.bias", f"{path}.bias", "o -> o", layers=layers),
    ]


def _bands(name: str, path: str, layers: int | None = None, **bands: int) -> list[Rule]:
    """A linear layer whose rows are bands. The patterns name these, so that `action_init` can keep
    them apart."""
    group = f"({' '.join(bands)} o)"
    return [
        rule(f"{name}.weight", f"{path}.kernel", f"{group} i -> i {group}", layers=layers, **bands),
        rule(f"{name}.bias", f"{path}.bias", f"{group} -> {group}", layers=layers, **bands),
    ]


def _two_layers(name: str, path: str) -> list[Rule]:
    return [*_linear(f"{name}.in_layer", f"{path}.wi"), *_linear(f"{name}.out_layer", f"{path}.wo")]


def _head(name: str) -> list[Rule]:
    return [
        *_linear(f"{name}.linear", "head.linear"),
        *_bands(f"{name}.adaLN_modulation.1", "head.modulation", two=2),
    ]


def _refiner(config: OvisU1Config) -> list[Rule]:
    layers, name, path = config.refiner_layers, f"{REFINER}{{i}}", "refiner.layers"
    width = config.dim

    def norm(theirs: str, ours: str) -> list[Rule]:
        names = (("weight", "scale"), ("bias", "bias"))
        return [
            rule(f"{name}.{theirs}.{a}", f"{path}.{ours}.{b}", "o -> o", layers=layers)
            for a, b in names
        ]

    def qkv(kind: str, ours: str, pattern: str) -> Rule:
        slices = tuple(
            TensorSlice(f"{path}.attention.{x}.{ours}", pattern, width=width) for x in "qkv"
        )
        return Rule(f"{name}.self_attn_qkv.{kind}", slices, layers=layers)

    return [
        *norm("norm1", "attention_norm"),
        qkv("weight", "kernel", TRANSPOSE),
        qkv("bias", "bias", "o -> o"),
        *_linear(f"{name}.self_attn_proj", f"{path}.attention.out", layers),
        *norm("norm2", "mlp_norm"),
        *_linear(f"{name}.mlp.fc1", f"{path}.mlp.wi", layers),
        *_linear(f"{name}.mlp.fc2", f"{path}.mlp.wo", layers),
        *_bands(f"{name}.adaLN_modulation.1", f"{path}.gates", layers, two=2),
    ]


def _blocks(widths: OvisU1Config | ActionExpertConfig, backbone: OvisU1Config) -> list[Rule]:
    """All blocks of a transformer or an expert, each tensor in native order. `widths` has the
    inner width of its MLPs."""
    double, single = backbone.group_sizes
    block, path = "double_blocks.{i}", "double_layers"
    rules = []
    for short, ours, attentions in (
        ("img", "image", (("img_attn", "joint"), ("img_self_attn", "alone"))),
        ("txt", "text", (("txt_attn", "joint"),)),
    ):
        rules += _modulation(f"{block}.{short}_mod", f"{path}.{ours}", double, 1 + len(attentions))
        for theirs, name in attentions:
            rules += _attention(f"{block}.{theirs}", f"{path}.{ours}.{name}", double, backbone)
        for number, name in (("0", "wi"), ("2", "wo")):
            rules += _linear(f"{block}.{short}_mlp.{number}", f"{path}.{ours}.mlp.{name}", double)
    return rules + _single(widths.mlp_dim, backbone, single)


def _modulation(name: str, path: str, layers: int, branches: int) -> list[Rule]:
    return _bands(f"{name}.lin", f"{path}.modulation.linear", layers, branch=branches, three=3)


def _attention(name: str, path: str, layers: int, backbone: OvisU1Config) -> list[Rule]:
    return [
        Rule(f"{name}.qkv.weight", qkv_slices(path, head_sizes(backbone)), layers=layers),
        Rule(f"{name}.qkv.bias", _qkv_biases(path, backbone), layers=layers),
        *norm_rules(f"{name}.norm", path, layers),
        *_linear(f"{name}.proj", f"{path}.out", layers),
    ]


def _single(mlp_dim: int, backbone: OvisU1Config, layers: int) -> list[Rule]:
    """Single blocks: `linear1` has the rows of q, k, v, then of the MLP; `linear2` has the columns
    of both outputs, which share a bias."""
    block, path = "single_blocks.{i}", "single_layers"
    attention, mlp = f"{path}.attention", f"{path}.mlp"
    weights = TensorSlice(f"{mlp}.wi.kernel", TRANSPOSE, width=mlp_dim)
    biases = TensorSlice(f"{mlp}.wi.bias", "o -> o", width=mlp_dim)
    columns = (
        TensorSlice(f"{attention}.out.kernel", TRANSPOSE, width=backbone.dim),
        TensorSlice(f"{mlp}.wo.kernel", TRANSPOSE, width=mlp_dim),
    )
    qkv = qkv_slices(attention, head_sizes(backbone))
    return [
        Rule(f"{block}.linear1.weight", (*qkv, weights), layers=layers),
        Rule(f"{block}.linear1.bias", (*_qkv_biases(attention, backbone), biases), layers=layers),
        Rule(f"{block}.linear2.weight", columns, axis=1, layers=layers),
        rule(f"{block}.linear2.bias", f"{attention}.out.bias", "o -> o", layers=layers),
        *norm_rules(f"{block}.norm", attention, layers),
        *_modulation(f"{block}.modulation", path, layers, 1),
    ]


def _qkv_biases(path: str, backbone: OvisU1Config) -> tuple[TensorSlice, ...]:
    sizes, pairs = head_sizes(backbone), "(n pair two) -> (n two pair)"
    return (
        TensorSlice(f"{path}.q.bias", pairs, sizes, backbone.dim),
        TensorSlice(f"{path}.k.bias", pairs, sizes, backbone.dim),
        TensorSlice(f"{path}.v.bias", "o -> o", width=backbone.dim),
    )


OVIS_U1 = Family(
    title="Ovis-U1",
    backbone=OvisU1Config,
    factory="create_imagewam_ovis_u1",
    first="img_in.weight",
    expert=("time_in.in_layer.bias", "single_blocks.0.linear1.weight"),
    aliases={"double_blocks.": "double_blocks.", "single_blocks.": "single_blocks."},
    modules=(
        (
            "img_in",
            "time_in",
            "vector_in",
            "txt_in",
            "double_blocks",
            "single_blocks",
            "final_layer.linear",
            "final_layer.adaLN_modulation",
        ),
        (
            "action_encoder",
            "time_in",
            "double_blocks",
            "single_blocks",
            "head.linear",
            "head.adaLN_modulation",
        ),
    ),
    transformer_config=ovis_u1_config,
    transformer_rules=ovis_u1_rules,
    expert_config=expert_config,
    expert_rules=expert_rules,
    check_expert=check_expert,
    initial_name=lambda name: name,
    scaled=False,
    initial_config=initial_expert_config,
    unpacked="same",
    settings=settings,
)
