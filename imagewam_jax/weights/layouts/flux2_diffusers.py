"""FLUX.2 transformer tensors as `diffusers` names them (docs/spec/imagewam_flux2.md, 1.11).

The double blocks have separate q, k and v; the single blocks are fused as in the original layout;
the last modulation has scale before shift.
"""

from functools import partial
from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.backbones.flux2 import Flux2Config
from imagewam_jax.weights.layouts.flux2 import (
    PAIRS,
    exact_ratio,
    gate_up_slices,
    head_sizes,
    mlp_ratio,
    modulation_rule,
    norm_rule,
    out_slices,
    qkv_slices,
    with_klein_rope,
)
from imagewam_jax.weights.layouts.mapping import TRANSPOSE, Rule, TensorSlice, rule
from imagewam_jax.weights.layouts.metadata import Metadata, Specs, agree, count, find, size

CLASS = "Flux2Transformer2DModel"
EPS = 1e-6  # in all norms
_TIME = "time_guidance_embed"


def flux2_diffusers_config(specs: Specs, metadata: Metadata) -> Flux2Config:
    """Does what `flux2.flux2_config` does; `metadata` can hold the `config.json` of diffusers."""
    if any(name.startswith(f"{_TIME}.guidance_embedder.") for name in specs):
        raise ConversionError(
            "these weights have a guidance embedding, as FLUX.2 [dev] does; ImageWAM is made of "
            "FLUX.2 [klein], which has none"
        )
    dim = size(specs, "x_embedder.weight", 0)
    mlp_dim = size(specs, "transformer_blocks.0.ff.linear_out.weight", 1)
    sizes = {
        "in_channels": size(specs, "x_embedder.weight", 1),
        "text_dim": size(specs, "context_embedder.weight", 1),
        "dim": dim,
        "heads": dim // size(specs, "transformer_blocks.0.attn.norm_q.weight", 0),
        "double_layers": count(specs, "transformer_blocks."),
        "single_layers": count(specs, "single_transformer_blocks."),
        "mlp_ratio": mlp_ratio(mlp_dim, dim),
    }
    names = {
        "in_channels": "in_channels",
        "text_dim": "joint_attention_dim",
        "heads": "num_attention_heads",
        "double_layers": "num_layers",
        "single_layers": "num_single_layers",
        "mlp_ratio": "mlp_ratio",
    }
    found = {ours: find(metadata, theirs) for ours, theirs in names.items()}
    found["mlp_ratio"] = exact_ratio(found["mlp_ratio"], mlp_dim, dim)
    agree(sizes, found, "config.json")
    agree({"eps": EPS}, {"eps": find(metadata, "eps")}, "config.json")
    rope = {
        "rope_axes": find(metadata, "rope_axes", "axes_dims_rope"),
        "rope_theta": find(metadata, "rope_theta"),
    }
    return with_klein_rope(sizes, rope)


def flux2_diffusers_rules(config: Flux2Config) -> list[Rule]:
    """Map names of diffusers to the tree of `models.backbones.flux2.Flux2`."""
    sizes, mlp = head_sizes(config), config.mlp_dim
    double, single = config.group_sizes
    embedder = f"{_TIME}.timestep_embedder"
    exchanged = TensorSlice("head.modulation.kernel", TRANSPOSE, exchange=1)
    return [
        rule("x_embedder.weight", "image_in.kernel", TRANSPOSE),
        rule("context_embedder.weight", "text_in.kernel", TRANSPOSE),
        rule(f"{embedder}.linear_1.weight", "time_in.wi.kernel", TRANSPOSE),
        rule(f"{embedder}.linear_2.weight", "time_in.wo.kernel", TRANSPOSE),
        modulation_rule("double_stream_modulation_img.linear.weight", "double_modulation_image", 2),
        modulation_rule("double_stream_modulation_txt.linear.weight", "double_modulation_text", 2),
        modulation_rule("single_stream_modulation.linear.weight", "single_modulation", 1),
        Rule("norm_out.linear.weight", (exchanged,)),
        rule("proj_out.weight", "head.linear.kernel", TRANSPOSE),
        *_double("image", ("to_{}", "norm_{}", "to_out.0"), "ff", double, sizes, mlp),
        *_double(
            "text", ("add_{}_proj", "norm_added_{}", "to_add_out"), "ff_context", double, sizes, mlp
        ),
        *_single(single, sizes, mlp),
    ]


def flux2_diffusers_json(config: Flux2Config) -> dict[str, Any]:
    """The `config.json` from which diffusers builds the transformer."""
    return {
        "_class_name": CLASS,
        "patch_size": 1,
        "in_channels": config.in_channels,
        "out_channels": None,
        "num_layers": config.double_layers,
        "num_single_layers": config.single_layers,
        "attention_head_dim": config.head_dim,
        "num_attention_heads": config.heads,
        "joint_attention_dim": config.text_dim,
        "timestep_guidance_channels": 256,
        "mlp_ratio": config.mlp_ratio,
        "axes_dims_rope": list(config.rope_axes),
        "rope_theta": config.rope_theta,
        "eps": EPS,
        "guidance_embeds": False,
    }


def _double(stream, names, mlp_name, layers, sizes, mlp) -> list[Rule]:
    linear, norm, out = (f"transformer_blocks.{{i}}.attn.{name}.weight" for name in names)
    block, path = f"transformer_blocks.{{i}}.{mlp_name}", f"double_layers.{stream}"
    each = partial(rule, layers=layers)
    return [
        *(each(linear.replace("{}", x), f"{path}.{x}.kernel", PAIRS, **sizes) for x in "qk"),
        each(linear.replace("{}", "v"), f"{path}.v.kernel", TRANSPOSE),
        *(norm_rule(norm.replace("{}", x), f"{path}.{x}_norm.scale", layers) for x in "qk"),
        each(out, f"{path}.out.kernel", TRANSPOSE),
        Rule(f"{block}.linear_in.weight", gate_up_slices(path, mlp), layers=layers),
        each(f"{block}.linear_out.weight", f"{path}.mlp.out.kernel", TRANSPOSE),
    ]


def _single(layers, sizes, mlp) -> list[Rule]:
    block, path = "single_transformer_blocks.{i}.attn", "single_layers.block"
    return [
        Rule(
            f"{block}.to_qkv_mlp_proj.weight",
            (*qkv_slices(path, sizes), *gate_up_slices(path, mlp)),
            layers=layers,
        ),
        Rule(f"{block}.to_out.weight", out_slices(path, sizes, mlp), axis=1, layers=layers),
        norm_rule(f"{block}.norm_q.weight", f"{path}.q_norm.scale", layers),
        norm_rule(f"{block}.norm_k.weight", f"{path}.k_norm.scale", layers),
    ]
