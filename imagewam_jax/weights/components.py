"""The parts that weights can be converted for, and where each lies in a checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

from imagewam_jax.checkpoints.assets import autoencoder_config
from imagewam_jax.config.schema import (
    from_fields,
    model_section,
    named_config,
    named_section,
    policy_config,
)
from imagewam_jax.errors import CheckpointError
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.autoencoders import AUTOENCODERS
from imagewam_jax.models.backbones import BACKBONES
from imagewam_jax.models.imagewam import ImageWAM
from imagewam_jax.models.parameters import module_tree
from imagewam_jax.models.text_encoders.qwen3 import Qwen3, Qwen3Config


class Part(NamedTuple):
    """A part of a policy.

    `tree` is that of a checkpoint, `path` where the part stands in it. `module` builds it from
    its config; `section` is what a checkpoint's config says of it, and `config` the inverse.
    """

    tree: str
    path: str
    module: Callable[[Any], nnx.Module] | None
    section: Callable[[Any], dict[str, Any]]
    config: Callable[[Mapping[str, Any]], Any]

    def abstract(self, config: Any) -> dict[str, Any]:
        """Shapes and dtypes of the part alone."""
        return jax.eval_shape(lambda: module_tree(self.module(config)))


def _of_registry(registry: Mapping[str, Any], config: Any) -> nnx.Module:
    module = next(module for kind, module in registry.values() if isinstance(config, kind))
    return module(config, rngs=nnx.Rngs(0))


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


PARTS = {
    "policy": Part(
        "params",
        "",
        lambda config: ImageWAM(config, rngs=nnx.Rngs(0)),
        lambda config: {"model": model_section(config)},
        lambda config: policy_config(config["model"]),
    ),
    "backbone": Part(
        "params",
        "backbone",
        lambda config: _of_registry(BACKBONES, config),
        lambda config: {"model": {"backbone": named_section(config, BACKBONES)}},
        lambda config: named_config(config["model"]["backbone"], BACKBONES, "model.backbone"),
    ),
    # Its first weights alone: the sizes of what has none, such as the action, are not known yet.
    "expert": Part(
        "params",
        "expert",
        None,
        lambda config: {"model": {"expert": _without(dataclasses.asdict(config), "action_dim")}},
        lambda config: from_fields(ActionExpertConfig, config["model"]["expert"], "model.expert"),
    ),
    "autoencoder": Part(
        "autoencoder",
        "",
        lambda config: _of_registry(AUTOENCODERS, config),
        lambda config: {"autoencoder": named_section(config, AUTOENCODERS)},
        lambda config: autoencoder_config(config["autoencoder"]),
    ),
    "text_encoder": Part(
        "text_encoder",
        "",
        lambda config: Qwen3(config, rngs=nnx.Rngs(0)),
        lambda config: {"text": {"encoder": "qwen3", "sizes": dataclasses.asdict(config)}},
        lambda config: from_fields(Qwen3Config, config["text"]["sizes"], "text.sizes"),
    ),
}


def parts_of(metadata: Mapping[str, Any], trees: set[str], where: str) -> dict[str, Any]:
    """The parts that a checkpoint has, with the config of each; a whole policy is one part."""
    config = metadata["config"]
    names = []
    if "params" in trees:
        model = config.get("model", {})
        names.append("policy" if "horizon" in model else "backbone")
    names += [name for name in ("autoencoder", "text_encoder") if name in trees]
    if not names:
        raise CheckpointError(f"{where}: has no part that can be exchanged, only {sorted(trees)}")
    return {name: PARTS[name].config(config) for name in names}
