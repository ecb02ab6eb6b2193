"""Official ImageWAM checkpoints of the FLUX.2 family (docs/spec/imagewam_flux2.md, 8.4).

`mot.mixtures.video.transformer.*` is the backbone, `mot.mixtures.action.*` the expert,
`proprio_encoder.*` the robot state's embedding. The blocks of the backbone stand in the file a
second time without `transformer`; those aliases can be stale (spec, gotcha 13) and are never
read.
"""

import re
from collections.abc import Mapping
from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.flow_matching import FlowConfig
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.weights.io.tensors import Joined, Renamed, TensorSource, dtype_name
from imagewam_jax.weights.layouts import lora
from imagewam_jax.weights.layouts.flux2 import (
    TRANSPOSE,
    action_expert_rules,
    expert_config,
    flux2_config,
    flux2_rules,
)
from imagewam_jax.weights.layouts.lora import BASE, FACTOR_A, FACTOR_B
from imagewam_jax.weights.layouts.mapping import Rule, rule, under
from imagewam_jax.weights.layouts.metadata import Facts, Specs, agree, find, section, size

BACKBONE = "mot.mixtures.video.transformer."
EXPERT = "mot.mixtures.action."
PROPRIO = "proprio_encoder."
_ALIAS = re.compile(r"mot\.mixtures\.video\.((?:double|single)_blocks\..*)")


def imagewam_rules(config: ImageWAMConfig) -> list[Rule]:
    """Official names to the tree of `models.imagewam.ImageWAM`."""
    rules = under(flux2_rules(config.backbone), prefix=BACKBONE, path="backbone")
    expert = action_expert_rules(config.expert, config.backbone)
    rules += under(expert, prefix=EXPERT, path="expert")
    if config.proprio_dim is not None:
        rules += [
            rule(f"{PROPRIO}weight", "proprio_in.kernel", TRANSPOSE),
            rule(f"{PROPRIO}bias", "proprio_in.bias", "o -> o"),
        ]
    return rules


def alias_names(config: ImageWAMConfig) -> dict[str, str]:
    """The aliases of a full checkpoint, and what each is another name of."""
    names = [n for r in flux2_rules(config.backbone) for n in r.names()]
    blocks = [n for n in names if n.startswith(("double_blocks.", "single_blocks."))]
    return {f"mot.mixtures.video.{n}": BACKBONE + n for n in blocks}


def imagewam_config(specs: Specs, facts: Facts) -> ImageWAMConfig:
    """Sizes from shapes; time shifts, loss weights and the like from the official training
    config, or official defaults. ConversionError: they contradict each other."""
    backbone = flux2_config(_below(specs, BACKBONE), facts)
    expert = expert_config(_below(specs, EXPERT), facts)
    given = section(facts, "model.action_dit_config", "action_dit_config")
    told = {"action_dim": expert.action_dim, "hidden_dim": expert.dim}
    agree(told, {name: given.get(name) for name in told}, "action_dit_config")
    has_proprio = f"{PROPRIO}weight" in specs
    fields = {
        "proprio_dim": size(specs, f"{PROPRIO}weight", 1) if has_proprio else None,
        "proprio_position": _proprio_position(facts),
        "target_flow": _flow(facts, "video"),
        "action_flow": _flow(facts, "action"),
        "horizon": _fact(facts, min(ImageWAMConfig.horizon, expert.max_horizon), *_HORIZON),
        "coordinate_dtype": _coordinate_dtype(specs, facts),
    }
    for name, key in (("target_loss_weight", "video"), ("action_loss_weight", "action")):
        fields[name] = _fact(facts, getattr(ImageWAMConfig, name), f"loss.lambda_{key}")
    try:
        return ImageWAMConfig(backbone, expert, **fields)
    except ValueError as error:
        raise ConversionError(f"{_file(specs)}: {error}") from error


def imagewam_source(source: TensorSource, facts: Facts, base: TensorSource | None) -> TensorSource:
    """The tensors that count, with LoRA factors merged and what only `base` has.

    `base` are the FLUX.2 weights, under the names of the original layout, that a checkpoint of
    trained tensors alone was trained from. ConversionError: they are needed and absent, or `alpha`
    is.
    """
    kept = _without_aliases(source)
    if BACKBONE + "img_in.weight" not in kept.specs:
        if base is None:
            raise ConversionError(
                f"{_file(kept.specs)}: holds only what was trained; give the FLUX.2 weights that "
                "it was trained from as another source"
            )
        kept = Joined(kept, Renamed(base, lambda name: _base_name(name, kept.specs)))
    return lora.merged(kept, facts)


def state(specs: Specs) -> str:
    """For people: which of the official kinds of checkpoint it is."""
    aliases = {name: spec for name, spec in specs.items() if _ALIAS.match(name)}
    kept = {name: spec for name, spec in specs.items() if name not in aliases}
    words = [lora.state(kept)]
    if BACKBONE + "img_in.weight" not in specs:
        words.append("trained tensors only")
    if lora.lora_rank(aliases) is not None and lora.lora_rank(kept) is None:
        words.append("LoRA merged, un-merged leftovers under alias names are not read")
    words.append(f"{len(aliases)} aliases" if aliases else "no aliases")
    return ", ".join(word for word in words if word)


def _without_aliases(source: TensorSource) -> Renamed:
    """ConversionError: a name that looks like an alias is not one of a tensor that is there."""
    plain = {_plain(name) for name in source.specs if not _ALIAS.match(name)}
    for name in source.specs:
        alias = _ALIAS.match(name)
        if alias and _plain(BACKBONE + alias[1]) not in plain:
            raise ConversionError(f"{_file(source.specs)}: unexpected tensor {name}")
    return Renamed(source, lambda name: None if _ALIAS.match(name) else name)


def _plain(name: str) -> str:
    """The weight that a LoRA factor or base belongs to."""
    for end in (BASE, FACTOR_A, FACTOR_B):
        name = f"{name.removesuffix(end)}.weight" if name.endswith(end) else name
    return name


def _base_name(name: str, trained: Specs) -> str | None:
    layer = BACKBONE + name.removesuffix(".weight")
    if layer + FACTOR_A in trained:
        return layer + BASE
    return None if BACKBONE + name in trained else BACKBONE + name


_HORIZON = ("horizon", "action_horizon")


def _fact(facts: Facts, fallback: Any, *keys: str) -> Any:
    """A value of the official training config, where the model's may be in a section."""
    value = find(facts, *keys, *(f"model.{key}" for key in keys))
    return fallback if value is None else value


def _flow(facts: Facts, modality: str) -> FlowConfig:
    shifts = {}
    for name, key in (("train_shift", "train"), ("sample_shift", "infer")):
        keys = f"{modality}_scheduler.{key}_shift", f"schedulers.{modality}_{key}_shift"
        shifts[name] = _fact(facts, getattr(FlowConfig, name), *keys)
    return FlowConfig(**shifts)


def _proprio_position(facts: Facts) -> int | None:
    """None: behind the valid text. Officially otherwise: behind all of the padded text."""
    if _fact(facts, True, "pack_proprio_after_text"):
        return find(facts, "proprio_position")
    position = _fact(facts, None, "proprio_position", "context_len", "qwen_context_len")
    if position is None:
        raise ConversionError(
            "pack_proprio_after_text is off: give the padded text length of training as "
            "--set proprio_position=..."
        )
    return position


def _below(specs: Specs, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): s for name, s in specs.items() if name.startswith(prefix)}


def _coordinate_dtype(specs: Specs, facts: Facts) -> str:
    """Official positions and times are in the dtype that the parameters had in training; a file
    can hold them in another one."""
    named = find(facts, "coordinate_dtype")
    if named is None:
        named = _PRECISION.get(find(facts, "torch_dtype", "mixed_precision"))
    if named is None:
        named = dtype_name({specs[f"{EXPERT}action_encoder.weight"].dtype})
    return named if named == "bfloat16" else "float32"


_PRECISION = {
    "torch.bfloat16": "bfloat16",
    "torch.float32": "float32",
    "bf16": "bfloat16",
    "no": "float32",
}


def _file(specs: Mapping[str, Any]) -> str:
    return next(iter(specs.values())).file if specs else "the checkpoint"
