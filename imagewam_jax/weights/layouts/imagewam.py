"""Official ImageWAM checkpoints, of all families (docs/spec/imagewam_flux2.md, 8.4).

`mot.mixtures.video.transformer.*` is the backbone, `mot.mixtures.action.*` the expert, and
`proprio_encoder.*` the robot state's embedding. The file has the backbone's blocks a second time,
under names without `transformer`; these aliases can be stale (spec, gotcha 13) and are never read.
"""

from collections.abc import Mapping
from typing import Any

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.flow_matching import FlowConfig
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.weights.io.tensors import Joined, Renamed, TensorSource, dtype_name
from imagewam_jax.weights.layouts import lora
from imagewam_jax.weights.layouts.families import family_of, recognized_family
from imagewam_jax.weights.layouts.family import Family
from imagewam_jax.weights.layouts.imagewam_settings import frames_horizon, setting
from imagewam_jax.weights.layouts.lora import BASE, FACTOR_A, FACTOR_B
from imagewam_jax.weights.layouts.mapping import TRANSPOSE, Rule, rule, under
from imagewam_jax.weights.layouts.metadata import (
    Metadata,
    SourceMetadata,
    Specs,
    agree,
    find,
    size,
)

MOT = "mot."
BACKBONE = f"{MOT}mixtures.video.transformer."
EXPERT = f"{MOT}mixtures.action."
PROPRIO = "proprio_encoder."
ALIASES = f"{MOT}mixtures.video."


def imagewam_rules(config: ImageWAMConfig) -> list[Rule]:
    """Map official names to the tree of `models.imagewam.ImageWAM`."""
    family = family_of(config.backbone)
    rules = under(family.transformer_rules(config.backbone), prefix=BACKBONE, path="backbone")
    expert = family.expert_rules(config.expert, config.backbone)
    rules += under(expert, prefix=EXPERT, path="expert")
    if config.proprio_dim is not None:
        rules += [
            rule(f"{PROPRIO}weight", "proprio_in.kernel", TRANSPOSE),
            rule(f"{PROPRIO}bias", "proprio_in.bias", "o -> o"),
        ]
    return rules


def alias_names(config: ImageWAMConfig) -> dict[str, str]:
    """Each alias in a full checkpoint, with the name of the tensor that it stands for."""
    family = family_of(config.backbone)
    names = [n for r in family.transformer_rules(config.backbone) for n in r.names()]
    return {
        ALIASES + alias + name.removeprefix(blocks): BACKBONE + name
        for alias, blocks in family.aliases.items()
        for name in names
        if name.startswith(blocks)
    }


def imagewam_config(specs: Specs, metadata: Metadata) -> ImageWAMConfig:
    """The sizes from shapes; time shifts, loss weights and the like from the official training
    config, or else the official defaults. ConversionError: they contradict each other."""
    family = recognized_family(specs, EXPERT)
    _check_factory(specs, family, metadata)
    backbone = family.transformer_config(_below(specs, BACKBONE), metadata)
    expert = family.expert_config(_below(specs, EXPERT), metadata)
    family.check_expert(expert, backbone, metadata)
    has_proprio = f"{PROPRIO}weight" in specs
    proprio_dim = size(specs, f"{PROPRIO}weight", 1) if has_proprio else None
    widths = {
        "action_output_dim": expert.action_dim,
        "proprio_output_dim": proprio_dim,
        "proprio_dim": proprio_dim,
    }
    if not has_proprio:  # the policy then ignores what the processor puts out
        del widths["proprio_output_dim"]
    agree(widths, {name: setting(_files(metadata), name) for name in widths}, "the training config")
    position = None if family.unpacked == "same" else _proprio_position(metadata)
    if position is not None and family.unpacked == "refused":
        raise ConversionError(
            f"{_file(specs)}: pack_proprio_after_text is off, so that this policy on "
            f"{family.title} reads the features of padded text, which tables of text do not hold: "
            "only policies with it on are supported"
        )
    fields = {
        "proprio_dim": proprio_dim,
        "proprio_position": position,
        "target_flow": _flow(metadata, "video"),
        "action_flow": _flow(metadata, "action"),
        "horizon": _horizon(metadata, min(ImageWAMConfig.horizon, expert.max_horizon)),
        "coordinate_dtype": _coordinate_dtype(specs, metadata),
    }
    for name, key in (("target_loss_weight", "video"), ("action_loss_weight", "action")):
        fields[name] = _setting(metadata, getattr(ImageWAMConfig, name), f"loss.lambda_{key}")
    try:
        return ImageWAMConfig(backbone, expert, **fields)
    except ValueError as error:
        raise ConversionError(f"{_file(specs)}: {error}") from error


def _check_factory(specs: Specs, family: Family, metadata: Metadata) -> None:
    """ConversionError: the training config is of a policy on another backbone."""
    named = setting(_files(metadata), "model._target_")
    if named is not None and str(named).rpartition(".")[2] != family.factory:
        raise ConversionError(
            f"the training config beside {_file(specs)} makes its policy by {named!r}, its tensors "
            f"are of one on {family.title} ({family.factory}): give the config of this checkpoint"
        )


def imagewam_source(
    source: TensorSource, metadata: Metadata, base: TensorSource | None
) -> TensorSource:
    """The tensors without aliases, with LoRA factors merged, completed from `base`.

    `base` has the transformer's weights, under the names of the official code, that a checkpoint of
    only the trained tensors was trained from. ConversionError: `base` or LoRA's alpha is needed and
    absent.
    """
    family = recognized_family(source.specs, EXPERT)
    kept = _without_aliases(source, family)
    if BACKBONE + family.first not in kept.specs:
        if base is None:
            raise ConversionError(
                f"{_file(kept.specs)}: holds only what was trained; give the {family.title} "
                "weights that it was trained from as another source"
            )
        kept = Joined(kept, Renamed(base, lambda name: _base_name(name, kept.specs)))
    return lora.merged(kept, metadata)


def state(specs: Specs) -> str:
    """Describe, for the terminal, which of the official kinds of checkpoint it is."""
    family = recognized_family(specs, EXPERT)
    aliases = {name: spec for name, spec in specs.items() if _alias(name, family)}
    kept = {name: spec for name, spec in specs.items() if name not in aliases}
    words = [lora.state(kept)]
    if BACKBONE + family.first not in specs:
        words.append("trained tensors only")
    if lora.lora_rank(aliases) is not None and lora.lora_rank(kept) is None:
        words.append("LoRA merged, un-merged leftovers under alias names are not read")
    words.append(f"{len(aliases)} aliases" if aliases else "no aliases")
    return ", ".join(word for word in words if word)


def _without_aliases(source: TensorSource, family: Family) -> Renamed:
    """The source without aliases. ConversionError: an alias stands for no tensor of the source."""
    aliases = {name: _alias(name, family) for name in source.specs}
    plain = {_plain(name) for name, alias in aliases.items() if alias is None}
    for name, alias in aliases.items():
        if alias is not None and _plain(alias) not in plain:
            raise ConversionError(f"{_file(source.specs)}: unexpected tensor {name}")
    return Renamed(source, lambda name: name if aliases[name] is None else None)


def _alias(name: str, family: Family) -> str | None:
    """The tensor that a name stands for as an alias; None if it is none."""
    for alias, blocks in family.aliases.items():
        if name.startswith(ALIASES + alias):
            return BACKBONE + blocks + name.removeprefix(ALIASES + alias)
    return None


def _plain(name: str) -> str:
    """The name of the weight that a LoRA factor or base belongs to."""
    for end in (BASE, FACTOR_A, FACTOR_B):
        name = f"{name.removesuffix(end)}.weight" if name.endswith(end) else name
    return name


def _base_name(name: str, trained: Specs) -> str | None:
    layer = BACKBONE + name.removesuffix(".weight")
    if layer + FACTOR_A in trained:
        return layer + BASE
    return None if BACKBONE + name in trained else BACKBONE + name


_HORIZON = ("horizon", "action_horizon")


def _horizon(metadata: Metadata, default: int) -> int:
    """The length of a chunk. ConversionError: the config's frames say another than its actions."""
    horizon = _setting(metadata, None, *_HORIZON)
    by_frames = frames_horizon(_files(metadata))
    if None not in (horizon, by_frames) and horizon != by_frames:
        raise ConversionError(
            f"chunks of {horizon} actions contradict num_frames={by_frames + 1} of the training "
            f"config, which means chunks of {by_frames}"
        )
    given = by_frames if horizon is None else horizon
    return default if given is None else given


def _setting(metadata: Metadata, default: Any, *keys: str) -> Any:
    """What the user sets, else a value of the official training config, which can have it in a
    section `model` or deeper. ConversionError: it has several."""
    value = find(metadata, *keys, *(f"model.{key}" for key in keys))
    anywhere = [setting(_files(metadata), key) for key in keys]
    if value is None:
        value = next((found for found in anywhere if found is not None), None)
    return default if value is None else value


def _files(metadata: Metadata) -> Mapping[str, Any]:
    return metadata.files if isinstance(metadata, SourceMetadata) else metadata


def _flow(metadata: Metadata, modality: str) -> FlowConfig:
    shifts = {}
    for name, key in (("train_shift", "train"), ("sample_shift", "infer")):
        keys = f"{modality}_scheduler.{key}_shift", f"schedulers.{modality}_{key}_shift"
        shifts[name] = _setting(metadata, getattr(FlowConfig, name), *keys)
    return FlowConfig(**shifts)


def _proprio_position(metadata: Metadata) -> int | None:
    """The robot state's position: None means behind the valid text; otherwise it stands behind all
    of the padded text, whose length this is."""
    if _setting(metadata, True, "pack_proprio_after_text"):
        return find(metadata, "proprio_position")
    position = _setting(metadata, None, "proprio_position", "context_len", "qwen_context_len")
    if position is None:
        raise ConversionError(
            "pack_proprio_after_text is off: give the padded text length of training as "
            "--set proprio_position=..."
        )
    return position


def _below(specs: Specs, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): s for name, s in specs.items() if name.startswith(prefix)}


def _coordinate_dtype(specs: Specs, metadata: Metadata) -> str:
    """The dtype of positions and times, which officially is the parameters' dtype in training; the
    file can hold the parameters in another one."""
    named = find(metadata, "coordinate_dtype")
    if named is not None:
        return named
    stated = {name: find(metadata, name) for name in ("torch_dtype", "mixed_precision")}
    stated = {name: value for name, value in stated.items() if value is not None}
    found = {_PRECISION.get(value) for value in stated.values()}
    if len(found) > 1 or None in found:
        said = " and ".join(f"{name}={value}" for name, value in stated.items())
        raise ConversionError(
            f"{_file(specs)}: {said}: the policy was trained in bfloat16 or in float32; give the "
            "right one as --set coordinate_dtype=..."
        )
    if found:
        return found.pop()
    dtype = dtype_name({specs[f"{EXPERT}action_encoder.weight"].dtype})
    return dtype if dtype == "bfloat16" else "float32"


_PRECISION = {
    "torch.bfloat16": "bfloat16",
    "torch.float32": "float32",
    "bfloat16": "bfloat16",
    "float32": "float32",
    "bf16": "bfloat16",
    "no": "float32",
    False: "float32",  # as YAML reads "no" without quotes
}


def _file(specs: Mapping[str, Any]) -> str:
    return next(iter(specs.values())).file if specs else "the checkpoint"
