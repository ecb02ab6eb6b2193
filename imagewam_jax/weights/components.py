"""The components of a policy that weights are converted for, and where each is in a checkpoint."""

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


class Component(NamedTuple):
    """A component of a policy.

    `tree` is the tree of a checkpoint that it is in, `path` its place in that tree. `module` builds
    it from its config. `section` makes the section of a checkpoint's config that describes it, and
    `config` is the inverse.
    """

    tree: str
    path: str
    module: Callable[[Any], nnx.Module] | None
    section: Callable[[Any], dict[str, Any]]
    config: Callable[[Mapping[str, Any]], Any]

    def abstract(self, config: Any) -> dict[str, Any]:
        """Shapes and dtypes of its arrays."""
        return jax.eval_shape(lambda: module_tree(self.module(config)))


def _build(registry: Mapping[str, Any], config: Any) -> nnx.Module:
    """The module of the registry's entry that has this type of config."""
    module = next(module for kind, module in registry.values() if isinstance(config, kind))
    return module(config, rngs=nnx.Rngs(0))


def _without(fields: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in fields.items() if key != name}


COMPONENTS = {
    "policy": Component(
        "params",
        "",
        lambda config: ImageWAM(config, rngs=nnx.Rngs(0)),
        lambda config: {"model": model_section(config)},
        lambda config: policy_config(config["model"]),
    ),
    "backbone": Component(
        "params",
        "backbone",
        lambda config: _build(BACKBONES, config),
        lambda config: {"model": {"backbone": named_section(config, BACKBONES)}},
        lambda config: named_config(config["model"]["backbone"], BACKBONES, "model.backbone"),
    ),
    # Only its first weights: the sizes of other arrays, such as the action's, are not known yet.
    "expert": Component(
        "params",
        "expert",
        None,
        lambda config: {"model": {"expert": _without(dataclasses.asdict(config), "action_dim")}},
        lambda config: from_fields(ActionExpertConfig, config["model"]["expert"], "model.expert"),
    ),
    "autoencoder": Component(
        "autoencoder",
        "",
        lambda config: _build(AUTOENCODERS, config),
        lambda config: {"autoencoder": named_section(config, AUTOENCODERS)},
        lambda config: autoencoder_config(config["autoencoder"]),
    ),
    "text_encoder": Component(
        "text_encoder",
        "",
        lambda config: Qwen3(config, rngs=nnx.Rngs(0)),
        lambda config: {"text": {"encoder": "qwen3", "sizes": dataclasses.asdict(config)}},
        lambda config: from_fields(Qwen3Config, config["text"]["sizes"], "text.sizes"),
    ),
}


def checkpoint_components(
    metadata: Mapping[str, Any], trees: set[str], where: str
) -> dict[str, Any]:
    """The components of a checkpoint, with the config of each; a whole policy is one component."""
    config = metadata["config"]
    names = []
    if "params" in trees:
        model = config.get("model", {})
        names.append("policy" if "horizon" in model else "backbone")
    names += [name for name in ("autoencoder", "text_encoder") if name in trees]
    if not names:
        raise CheckpointError(
            f"{where}: has no component that can be exchanged, only {sorted(trees)}"
        )
    return {name: COMPONENTS[name].config(config) for name in names}
