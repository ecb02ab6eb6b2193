"""The official policy checkpoint: `model.pt` and its settings (docs/spec/imagewam_flux2.md, 8).

`model.pt` is a dictionary with a few values and, under `mot`, the state of the joint model in the
order of its modules; the training config beside it has the rest.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from imagewam_jax.models.flow_matching import TIMESTEPS, FlowConfig
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.weights.io.torch_files import TensorName
from imagewam_jax.weights.layouts.families import family_of
from imagewam_jax.weights.layouts.imagewam import BACKBONE, EXPERT, MOT, PROPRIO, alias_names
from imagewam_jax.weights.layouts.metadata import Specs

# The official names for the dtype of parameters, positions and times.
MIXED_PRECISION = {"bfloat16": "bf16", "float32": "no"}


def checkpoint_contents(config: ImageWAMConfig, specs: Specs, step: int) -> dict[str, Any]:
    """The contents of an official checkpoint of all tensors `specs`, in the order of a native one.

    Aliases name the same tensors again, behind the tensors that they stand for.
    """
    family = family_of(config.backbone)
    aliases = {name: alias for alias, name in alias_names(config).items()}
    backbone, expert = (
        _in_order(specs, prefix, modules)
        for prefix, modules in zip((BACKBONE, EXPERT), family.modules, strict=True)
    )
    mot = {name: name for name in backbone}
    mot |= {aliases[name]: name for name in backbone if name in aliases}
    mot |= {name: name for name in expert}
    contents = {
        "mot": OrderedDict(
            (name.removeprefix(MOT), TensorName(tensor)) for name, tensor in mot.items()
        ),
        "step": step,
        "torch_dtype": f"torch.{np.dtype(specs[BACKBONE + family.first].dtype)}",
    }
    if config.proprio_dim is not None:
        contents["proprio_encoder"] = OrderedDict(
            (name, TensorName(PROPRIO + name)) for name in ("weight", "bias")
        )
    return contents


def _in_order(names: Iterable[str], prefix: str, modules: Sequence[str]) -> list[str]:
    """The names below a prefix, sorted by module, then by block, and otherwise left in order."""

    def position(name: str) -> tuple[int, int]:
        name = f"{name.removeprefix(prefix)}."
        module = next(i for i, module in enumerate(modules) if name.startswith(f"{module}."))
        block = re.search(r"\.(\d+)\.", name)  # the first number: others are within the block
        return module, int(block[1]) if block else 0

    return sorted((name for name in names if name.startswith(prefix)), key=position)


def official_settings(config: ImageWAMConfig) -> dict[str, Any]:
    """The fields of an official training config that say what tensors do not show."""
    family = family_of(config.backbone)
    of_model, beside = family.settings(config)
    packed = config.proprio_position is None
    # The official code has no such setting where it would mean nothing.
    place = {} if family.unpacked == "same" else {"pack_proprio_after_text": packed}
    return {
        "mixed_precision": MIXED_PRECISION[config.coordinate_dtype],
        "action_horizon": config.horizon,
        "model": {
            "proprio_dim": config.proprio_dim,
            **place,
            **({} if packed else {"qwen_context_len": config.proprio_position}),
            **of_model,
            "video_scheduler": _scheduler(config.target_flow),
            "action_scheduler": _scheduler(config.action_flow),
            "loss": {
                "lambda_video": config.target_loss_weight,
                "lambda_action": config.action_loss_weight,
            },
        },
        **beside,
    }


def without_lora(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same training config for a model whose adapters are merged. Otherwise the official code
    would look for factors that the weights no longer have, and leave the layers as they were."""
    return {
        key: {**value, "enabled": False}
        if key == "flux2_lora_config" and isinstance(value, Mapping) and value.get("enabled")
        else without_lora(value)
        if isinstance(value, Mapping)
        else value
        for key, value in settings.items()
    }


def _scheduler(flow: FlowConfig) -> dict[str, Any]:
    return {
        "train_shift": flow.train_shift,
        "infer_shift": flow.sample_shift,
        "num_train_timesteps": TIMESTEPS,
    }
