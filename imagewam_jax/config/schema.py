"""Turns sections of a config into dataclasses; an unknown or missing field is an error."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from imagewam_jax.errors import ConfigError, collecting, raise_all
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones import BACKBONES
from imagewam_jax.models.flow_matching import FlowConfig
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.models.lora import LoRAConfig

# The dtypes that can be computed in, by their names in configs.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def policy_config(model: Mapping[str, Any]) -> ImageWAMConfig:
    """The sizes of a policy from the `model` section of a config.

    A `proprio_dim` of 0, that of datasets without a robot state, is a policy without one.
    ConfigError for each field that does not fit.
    """
    kinds = {"expert": ActionExpertConfig, "target_flow": FlowConfig, "action_flow": FlowConfig}
    parts, errors = {}, []
    with collecting(errors):
        parts["backbone"] = named_config(model["backbone"], BACKBONES, "model.backbone")
    for name, kind in {**kinds, "lora": LoRAConfig}.items():
        with collecting(errors):
            section = model.get(name, {}) if name == "lora" else model[name]
            parts[name] = from_fields(kind, section, f"model.{name}")
    if "expert" in parts and not parts["expert"].action_dim >= 1:
        error = (
            f"model.expert.action_dim is {parts['expert'].action_dim}, expected at least 1: a "
            "policy cannot be trained on datasets without actions alone"
        )
        errors.append(ConfigError(error))
    with collecting(errors):
        name = model.get("coordinate_dtype", ImageWAMConfig.coordinate_dtype)
        choose(DTYPES, name, "model.coordinate_dtype")
    with collecting(errors):
        horizon = model.get("horizon", ImageWAMConfig.horizon)
        if isinstance(horizon, int) and horizon < 1:
            raise ConfigError(f"model.horizon is {horizon}, expected at least 1")
    raise_all(errors)
    parts["proprio_dim"] = model.get("proprio_dim") or None
    return from_fields(ImageWAMConfig, {**model, **parts}, "model")


def model_section(policy: ImageWAMConfig) -> dict[str, Any]:
    """The inverse of `policy_config`."""
    return {**dataclasses.asdict(policy), "backbone": named_section(policy.backbone, BACKBONES)}


def named_config(
    section: Mapping[str, Any], registry: Mapping[str, tuple[type, type]], where: str
) -> Any:
    """The sizes in a section whose `name` says which entry of a registry they belong to."""
    fields = {key: value for key, value in section.items() if key != "name"}
    kind, _ = choose(registry, section.get("name"), f"{where}.name")
    return from_fields(kind, fields, where)


def named_section(config: Any, registry: Mapping[str, tuple[type, type]]) -> dict[str, Any]:
    """The inverse of `named_config`."""
    name = next(name for name, (kind, _) in registry.items() if isinstance(config, kind))
    return {"name": name, **dataclasses.asdict(config)}


def from_fields(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass of some kind from a mapping.

    ConfigError names unknown or missing fields, or says what is wrong with a value.
    """
    known, errors = {field.name: field for field in dataclasses.fields(kind)}, []
    if unknown := sorted(set(values) - set(known)):
        error = f"{where} has unknown fields {unknown}; it has {sorted(known)}"
        errors.append(ConfigError(error))
    required = {
        name
        for name, field in known.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(values)):
        errors.append(ConfigError(f"{where} lacks the fields {missing}"))
    for name in [name for name in values if name in known]:
        value, expected = values[name], _NUMBERS.get(known[name].type)
        if expected and (not isinstance(value, expected) or isinstance(value, bool)):
            error = f"{where}.{name} is {value!r}, expected {known[name].type.__name__}"
            errors.append(ConfigError(error))
    raise_all(errors)
    try:
        return kind(**values)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


# The types that a number in a config may have, by the type of its field.
_NUMBERS = {int: int, float: (int, float)}


def choose(choices: Mapping[str, Any], name: str, where: str) -> Any:
    """The entry of a registry by its name. ConfigError lists the choices."""
    if name not in choices:
        raise ConfigError(f"{where} is {name!r}; choose from {sorted(choices)}")
    return choices[name]
