"""OmniGen2 and expert tensors (docs/spec/imagewam_omnigen2.md, 6 and 7).

The transformer has the same names in the diffusers layout and in an official checkpoint. Linear
weights are `[out, in]` there and `[in, out]` in our tree. The channels of each head of q and k, and
of their norms, have another order there (`flux2.PAIRS`). So have the numbers of an image's cell:
`(row, column, channel)` of its patch there, `(channel, row, column)` here, as autoencoders give
them.
"""

import math
from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.omnigen2 import OMNIGEN2 as RELEASED
from imagewam_jax.models.backbones.omnigen2 import OmniGen2Config
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.weights.layouts.family import Family
from imagewam_jax.weights.layouts.flux2 import (
    EXPERT_SECTIONS,
    NORM_PAIRS,
    PAIRS,
    expert_sizes,
    in_expert_sections,
    mlp_ratio,
)
from imagewam_jax.weights.layouts.mapping import TRANSPOSE, Rule, rule
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

CLASS = "OmniGen2Transformer2DModel"
SECTION = "transformer_config"  # in a recording; the config.json of diffusers is not in a section
MULTIPLE = 256  # the official multiple that an MLP's inner width is rounded up to
# name of ours -> the official one
_SIZES = {
    "patch": "patch_size",
    "dim": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_kv_heads",
    "layers": "num_layers",
    "refiner_layers": "num_refiner_layers",
    "text_dim": "text_feat_dim",
}


def omnigen2_config(specs: Specs, metadata: Metadata) -> OmniGen2Config:
    """Sizes from shapes; positions, times and the norms' epsilon from `metadata`, or from the
    released model of these sizes.

    ConversionError: a shape that tells a size is not there, or the files contradict it.
    """
    head_dim = size(specs, "layers.0.attn.norm_q.weight", 0)
    patch = _given(metadata, "patch_size") or OmniGen2Config.patch
    in_channels = size(specs, "x_embedder.weight", 1)
    sizes = {
        "in_channels": in_channels,
        "patch": patch,
        "text_dim": size(specs, "time_caption_embed.caption_embedder.1.weight", 1),
        "dim": size(specs, "x_embedder.weight", 0),
        "heads": size(specs, "layers.0.attn.to_q.weight", 0) // head_dim,
        "kv_heads": size(specs, "layers.0.attn.to_k.weight", 0) // head_dim,
        "layers": count(specs, "layers."),
        "refiner_layers": count(specs, "noise_refiner."),
        "max_references": size(specs, "image_index_embedding", 0),
        "mlp_dim": size(specs, "layers.0.feed_forward.linear_1.weight", 0),
    }
    latent = in_channels / patch**2
    known = {**sizes, "latent": latent, "out": latent}
    given = {ours: _given(metadata, theirs) for ours, theirs in _SIZES.items()}
    given |= {"latent": _given(metadata, "in_channels"), "out": _given(metadata, "out_channels")}
    agree(known, given, SECTION)
    eps = _given(metadata, "norm_eps")
    expert_eps = _of_expert(metadata, "norm_eps")
    sizes["norm_eps"] = eps or expert_eps or RELEASED.norm_eps
    agree(sizes, {"norm_eps": expert_eps}, EXPERT_SECTIONS[0])
    sizes["rope_theta"] = find_or(metadata, RELEASED.rope_theta, "rope_theta")
    more = {
        "rope_axes": find(metadata, "rope_axes", f"{SECTION}.axes_dim_rope", "axes_dim_rope"),
        "timestep_scale": find(metadata, "timestep_scale", f"{SECTION}.timestep_scale"),
    }
    more = fill_from_preset(sizes, more, (RELEASED,), "OmniGen2 transformer")
    for name, key in (
        ("action_timestep_scale", "timestep_scale"),
        ("action_rope_theta", "rope_theta"),
    ):
        more[name] = find_or(metadata, getattr(RELEASED, name), *in_expert_sections(key))
    try:
        return OmniGen2Config(**sizes, **more)
    except (TypeError, ValueError) as error:
        raise ConversionError(f"OmniGen2 transformer: {error}") from error


def omnigen2_rules(config: OmniGen2Config) -> list[Rule]:
    """Map official names to the tree of `models.backbones.omnigen2.OmniGen2`."""
    patch = {"p": config.patch, "q": config.patch}
    embedded = "time_caption_embed"
    rules = [rule("image_index_embedding", "reference_index", "n o -> n o")]
    for name, path in (
        ("x_embedder", "image_in"),
        ("ref_image_patch_embedder", "reference_in"),
    ):
        rules += [
            rule(f"{name}.weight", f"{path}.kernel", "o (p q c) -> (c p q) o", **patch),
            rule(f"{name}.bias", f"{path}.bias", "o -> o"),
        ]
    rules += [
        *_time_rules(f"{embedded}.timestep_embedder"),
        rule(f"{embedded}.caption_embedder.0.weight", "text_norm.scale", "o -> o"),
        *_linear(f"{embedded}.caption_embedder.1", "text_in"),
    ]
    for name, path, layers in (
        ("noise_refiner", "target_refiner", config.refiner_layers),
        ("ref_image_refiner", "reference_refiner", config.refiner_layers),
        ("context_refiner", "text_refiner", config.refiner_layers),
        ("layers", "layers", config.layers),
    ):
        rules += _block(name, path, layers, config, has_time=name != "context_refiner")
    return [
        *rules,
        *_linear("norm_out.linear_1", "head.modulation"),
        rule("norm_out.linear_2.weight", "head.linear.kernel", "(p q c) i -> i (c p q)", **patch),
        rule("norm_out.linear_2.bias", "head.linear.bias", "(p q c) -> (c p q)", **patch),
    ]


def expert_config(specs: Specs, metadata: Metadata) -> ActionExpertConfig:
    """The sizes of an action expert, from the shapes of its tensors."""
    return expert_sizes(specs, metadata, size(specs, "blocks.0.feed_forward.linear_1.weight", 0))


def initial_expert_config(metadata: Metadata) -> ActionExpertConfig:
    """The sizes of an expert that is still to be made: from `metadata`, else the official ones."""
    default = ActionExpertConfig()
    dim = find_or(metadata, default.dim, "expert_dim", *in_expert_sections("residual_dim"))
    ratio = find(metadata, "expert_mlp_ratio")
    if ratio is None:
        multiple = _of_expert(metadata, "multiple_of") or 1
        inner = 4 * dim * (_of_expert(metadata, "ffn_dim_multiplier") or 1)
        ratio = mlp_ratio(math.ceil(int(inner) / multiple) * multiple, dim)
    keys = "max_horizon", *in_expert_sections("max_action_horizon")
    max_horizon = find_or(metadata, default.max_horizon, *keys)
    return ActionExpertConfig(dim=dim, mlp_ratio=ratio, max_horizon=max_horizon)


def expert_rules(config: ActionExpertConfig, backbone: OmniGen2Config) -> list[Rule]:
    """Map official expert names to the tree of `models.backbones.omnigen2.OmniGen2Expert`."""
    return [
        *_linear("action_encoder", "action_in"),
        *_time_rules("timestep_embedder"),
        *_block("blocks", "layers", backbone.layers, backbone),
        *_linear("head.linear_1", "head.modulation"),
        *_linear("head.linear_2", "head.linear"),
    ]


def check_expert(expert: ActionExpertConfig, backbone: OmniGen2Config, metadata: Metadata) -> None:
    """ConversionError: the training config has an expert of another width or action dimension.

    Heads and layers are not compared: the official code takes those of the transformer, whatever
    its training config says.
    """
    given = section(metadata, *EXPERT_SECTIONS)
    sizes = {"action_dim": expert.action_dim, "residual_dim": expert.dim}
    agree(sizes, {name: given.get(name) for name in sizes}, EXPERT_SECTIONS[0])


def transformer_settings(config: OmniGen2Config) -> dict[str, Any]:
    """The fields from which the official code builds the transformer."""
    return {
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "in_channels": config.in_channels // config.patch**2,
        "out_channels": None,
        **_mlp_settings(config.mlp_dim, config.dim),
        "norm_eps": config.norm_eps,
        "axes_dim_rope": list(config.rope_axes),
        "axes_lens": [1024, 1664, 1664],  # how long the tables of positions are
        "timestep_scale": config.timestep_scale,
    }


def omnigen2_json(config: OmniGen2Config) -> dict[str, Any]:
    """The `config.json` from which OmniGen2 builds its transformer."""
    return {"_class_name": CLASS, **transformer_settings(config)}


def settings(config: ImageWAMConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a training config says of expert and transformer."""
    expert, backbone = config.expert, config.backbone
    described = {
        "action_dim": expert.action_dim,
        "residual_dim": expert.dim,
        "num_heads": backbone.heads,
        "num_kv_heads": backbone.kv_heads,
        "attn_head_dim": backbone.head_dim,
        "num_layers": backbone.layers,
        **_mlp_settings(expert.mlp_dim, expert.dim),
        "norm_eps": backbone.norm_eps,
        "frequency_embedding_size": 256,
        "timestep_scale": backbone.action_timestep_scale,
        "max_action_horizon": expert.max_horizon,
        "rope_theta": backbone.action_rope_theta,
    }
    return {"action_dit_config": described}, {SECTION: transformer_settings(backbone)}


def _mlp_settings(mlp_dim: int, dim: int) -> dict[str, Any]:
    """The official settings that give inner width `mlp_dim`: 4 x `dim` rounded up to `multiple_of`,
    or a factor `ffn_dim_multiplier` where no multiple fits."""
    fits = [m for m in range(1, MULTIPLE + 1) if math.ceil(4 * dim / m) * m == mlp_dim]
    if fits:
        return {"multiple_of": fits[-1], "ffn_dim_multiplier": None}
    return {"multiple_of": 1, "ffn_dim_multiplier": mlp_ratio(mlp_dim, 4 * dim)}


def _given(metadata: Metadata, name: str) -> Any:
    """A value of the transformer's config under its official name."""
    return find(metadata, f"{SECTION}.{name}", name)


def _of_expert(metadata: Metadata, name: str) -> Any:
    return find(metadata, *in_expert_sections(name))


def _linear(name: str, path: str) -> list[Rule]:
    return [
        rule(f"{name}.weight", f"{path}.kernel", TRANSPOSE),
        rule(f"{name}.bias", f"{path}.bias", "o -> o"),
    ]


def _time_rules(name: str) -> list[Rule]:
    return [*_linear(f"{name}.linear_1", "time_in.wi"), *_linear(f"{name}.linear_2", "time_in.wo")]


def _block(
    name: str, path: str, layers: int, config: OmniGen2Config, *, has_time: bool = True
) -> list[Rule]:
    """A stack of blocks, each tensor in native order."""
    pair = {"pair": config.head_dim // 2, "two": 2}
    inputs = "norm1.norm" if has_time else "norm1"

    def each(theirs: str, ours: str, pattern: str, **sizes: int) -> Rule:
        return rule(f"{name}.{{i}}.{theirs}", f"{path}.{ours}", pattern, layers=layers, **sizes)

    # The patterns name the bands of the rows, which `action_init` can keep apart.
    modulation = [
        each("norm1.linear.weight", "modulation.kernel", "(four o) i -> i (four o)", four=4),
        each("norm1.linear.bias", "modulation.bias", "(four o) -> (four o)", four=4),
    ]
    return [
        each("attn.norm_q.weight", "q_norm.scale", NORM_PAIRS, two=2),
        each("attn.norm_k.weight", "k_norm.scale", NORM_PAIRS, two=2),
        each("attn.to_q.weight", "q.kernel", PAIRS, n=config.heads, **pair),
        each("attn.to_k.weight", "k.kernel", PAIRS, n=config.kv_heads, **pair),
        each("attn.to_v.weight", "v.kernel", TRANSPOSE),
        each("attn.to_out.0.weight", "out.kernel", TRANSPOSE),
        each("feed_forward.linear_1.weight", "mlp.gate.kernel", TRANSPOSE),
        each("feed_forward.linear_2.weight", "mlp.out.kernel", TRANSPOSE),
        each("feed_forward.linear_3.weight", "mlp.up.kernel", TRANSPOSE),
        *(modulation if has_time else []),
        each(f"{inputs}.weight", "attention_norm.scale", "o -> o"),
        each("ffn_norm1.weight", "mlp_norm.scale", "o -> o"),
        each("norm2.weight", "attended_norm.scale", "o -> o"),
        each("ffn_norm2.weight", "mlp_out_norm.scale", "o -> o"),
    ]


def _initial_name(name: str) -> str:
    if name.startswith("blocks."):
        return f"layers.{name.removeprefix('blocks.')}"
    return f"time_caption_embed.{name}"


OMNIGEN2 = Family(
    title="OmniGen2",
    backbone=OmniGen2Config,
    factory="create_imagewam_omnigen2",
    first="x_embedder.weight",
    expert=("timestep_embedder.linear_1.weight", "blocks.0.ffn_norm1.weight"),
    aliases={"blocks.": "layers."},
    modules=(
        (
            "image_index_embedding",
            "x_embedder",
            "ref_image_patch_embedder",
            "time_caption_embed.timestep_embedder",
            "time_caption_embed.caption_embedder",
            "noise_refiner",
            "ref_image_refiner",
            "context_refiner",
            "layers",
            "norm_out",
        ),
        ("action_encoder", "timestep_embedder", "blocks", "head.linear_1", "head.linear_2"),
    ),
    transformer_config=omnigen2_config,
    transformer_rules=omnigen2_rules,
    expert_config=expert_config,
    expert_rules=expert_rules,
    check_expert=check_expert,
    initial_name=_initial_name,
    scaled=False,
    initial_config=lambda metadata, backbone: initial_expert_config(metadata),
    unpacked="refused",
    settings=settings,
)
