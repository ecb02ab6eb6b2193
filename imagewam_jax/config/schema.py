"""From a config to the sizes of a policy, strictly: an unknown or missing field is an error."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from imagewam_jax.errors import ConfigError
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones import BACKBONES
from imagewam_jax.models.flow_matching import FlowConfig
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.lora import LoRAConfig

# What numbers can be computed in, as the names in configs.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def policy_config(model: Mapping[str, Any]) -> ImageWAMConfig:
    """The `model` section of a config; ConfigError names the field that does not fit."""
    parts = {
        "backbone": named_config(model["backbone"], BACKBONES, "model.backbone"),
        "expert": from_fields(ActionExpertConfig, model["expert"], "model.expert"),
        "target_flow": from_fields(FlowConfig, model["target_flow"], "model.target_flow"),
        "action_flow": from_fields(FlowConfig, model["action_flow"], "model.action_flow"),
        "lora": from_fields(LoRAConfig, model.get("lora", {}), "model.lora"),
    }
    config = from_fields(ImageWAMConfig, {**model, **parts}, "model")
    choose(DTYPES, config.coordinate_dtype, "model.coordinate_dtype")
    if config.horizon < 1:
        raise ConfigError(f"model.horizon is {config.horizon}, expected at least 1")
    return config


def model_section(policy: ImageWAMConfig) -> dict[str, Any]:
    """The inverse of `policy_config`."""
    return {**dataclasses.asdict(policy), "backbone": named_section(policy.backbone, BACKBONES)}


def named_config(
    section: Mapping[str, Any], registry: Mapping[str, tuple[type, type]], where: str
) -> Any:
    """The sizes in a section that names a registry's entry."""
    fields = {key: value for key, value in section.items() if key != "name"}
    kind, _ = choose(registry, section.get("name"), f"{where}.name")
    return from_fields(kind, fields, where)


def named_section(config: Any, registry: Mapping[str, tuple[type, type]]) -> dict[str, Any]:
    """The inverse of `named_config`."""
    name = next(name for name, (kind, _) in registry.items() if isinstance(config, kind))
    return {"name": name, **dataclasses.asdict(config)}


def from_fields(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass from a mapping; ConfigError names fields that it does not have, or lacks, or
    says what is wrong with their values."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise ConfigError(f"{where} has unknown fields {unknown}; it has {sorted(known)}")
    required = {
        name
        for name, field in known.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        raise ConfigError(f"{where} lacks the fields {missing}")
    for name, value in values.items():
        expected = _NUMBERS.get(known[name].type)
        if expected and (not isinstance(value, expected) or isinstance(value, bool)):
            raise ConfigError(f"{where}.{name} is {value!r}, expected {known[name].type.__name__}")
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


# What a number of a config may be.
_NUMBERS = {int: int, float: (int, float)}


def choose(choices: Mapping[str, Any], name: str, where: str) -> Any:
    """The entry of a registry; ConfigError names the choices."""
    if name not in choices:
        raise ConfigError(f"{where} is {name!r}; choose from {sorted(choices)}")
    return choices[name]
