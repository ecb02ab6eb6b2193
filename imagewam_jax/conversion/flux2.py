"""FLUX.2 and action-expert tensors in the original layout (spec imagewam_flux2, 1.11 and 4.2).

Linear weights are `[out, in]` there and `[in, ...out]` here.
"""

from imagewam_jax.conversion.mapping import Part, Rule, rule
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import Flux2Config

TRANSPOSE = "o i -> i o"


def flux2_rules(config: Flux2Config) -> list[Rule]:
    """Original FLUX.2 names to the tree of `models.backbones.flux2.Flux2`."""
    mlp = int(config.dim * config.mlp_ratio)
    sizes = {"n": config.heads, "h": config.head_dim}
    double, single = config.group_sizes
    rules = [
        rule("img_in.weight", "image_in.kernel", TRANSPOSE),
        rule("txt_in.weight", "text_in.kernel", TRANSPOSE),
        *_time_rules(),
        _modulation("double_stream_modulation_img", "double_modulation_image", 2),
        _modulation("double_stream_modulation_txt", "double_modulation_text", 2),
        _modulation("single_stream_modulation", "single_modulation", 1),
        *_head_rules("final_layer"),
    ]
    for short, ours in (("img", "image"), ("txt", "text")):
        rules += _sequential(short, f"double_layers.{ours}", double, sizes, mlp)
    return rules + _parallel("single_layers.block", single, sizes, mlp)


def action_expert_rules(config: ActionExpertConfig, backbone: Flux2Config) -> list[Rule]:
    """Official expert names to the tree of `models.action_expert.ActionExpert`."""
    mlp = int(config.dim * config.mlp_ratio)
    sizes = {"n": backbone.heads, "h": backbone.head_dim}
    double, single = backbone.group_sizes
    return [
        rule("action_encoder.weight", "action_in.kernel", TRANSPOSE),
        rule("action_encoder.bias", "action_in.bias", "o -> o"),
        *_time_rules(),
        _modulation("double_stream_modulation_img", "double_modulation", 2),
        _modulation("single_stream_modulation", "single_modulation", 1),
        *_head_rules("head"),
        *_sequential("img", "double_layers", double, sizes, mlp),
        *_parallel("single_layers", single, sizes, mlp),
    ]


def _time_rules() -> list[Rule]:
    return [
        rule("time_in.in_layer.weight", "time_in.wi.kernel", TRANSPOSE),
        rule("time_in.out_layer.weight", "time_in.wo.kernel", TRANSPOSE),
    ]


def _modulation(name: str, path: str, branches: int) -> Rule:
    pattern = "(branch three o) i -> i branch three o"
    return rule(f"{name}.lin.weight", f"{path}.linear.kernel", pattern, branch=branches, three=3)


def _head_rules(name: str) -> list[Rule]:
    pattern = "(two o) i -> i two o"
    return [
        rule(f"{name}.adaLN_modulation.1.weight", "head.modulation.kernel", pattern, two=2),
        rule(f"{name}.linear.weight", "head.linear.kernel", TRANSPOSE),
    ]


_HEADS = "(n h) i -> i n h"
_OUT = "o (n h) -> n h o"


def _sequential(short: str, path: str, layers: int, sizes: dict[str, int], mlp: int) -> list[Rule]:
    block = f"double_blocks.{{i}}.{short}"
    return [
        Rule(f"{block}_attn.qkv.weight", _qkv(path, sizes), layers=layers),
        *_norms(f"{block}_attn.norm", path, layers),
        rule(f"{block}_attn.proj.weight", f"{path}.out.kernel", _OUT, layers=layers, **sizes),
        Rule(f"{block}_mlp.0.weight", _gate_up(path, mlp), layers=layers),
        rule(f"{block}_mlp.2.weight", f"{path}.mlp.out.kernel", TRANSPOSE, layers=layers),
    ]


def _parallel(path: str, layers: int, sizes: dict[str, int], mlp: int) -> list[Rule]:
    """`linear1` has the rows of qkv, then of the MLP; `linear2` the columns of both outputs."""
    block = "single_blocks.{i}"
    linear2 = (
        Part(f"{path}.out.kernel", _OUT, sizes, width=sizes["n"] * sizes["h"]),
        Part(f"{path}.mlp.out.kernel", TRANSPOSE, {}, width=mlp),
    )
    return [
        Rule(f"{block}.linear1.weight", (*_qkv(path, sizes), *_gate_up(path, mlp)), layers=layers),
        Rule(f"{block}.linear2.weight", linear2, axis=1, layers=layers),
        *_norms(f"{block}.norm", path, layers),
    ]


def _qkv(path: str, sizes: dict[str, int]) -> tuple[Part, ...]:
    width = sizes["n"] * sizes["h"]
    return tuple(Part(f"{path}.{name}.kernel", _HEADS, sizes, width) for name in "qkv")


def _gate_up(path: str, mlp: int) -> tuple[Part, ...]:
    return tuple(Part(f"{path}.mlp.{name}.kernel", TRANSPOSE, {}, mlp) for name in ("gate", "up"))


def _norms(name: str, path: str, layers: int) -> list[Rule]:
    return [
        rule(f"{name}.query_norm.scale", f"{path}.q_norm.scale", "h -> h", layers=layers),
        rule(f"{name}.key_norm.scale", f"{path}.k_norm.scale", "h -> h", layers=layers),
    ]
