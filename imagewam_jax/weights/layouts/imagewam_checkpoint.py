"""The official policy checkpoint: `model.pt` and its settings (docs/spec/imagewam_flux2.md, 8).

`model.pt` is a dictionary with a few values and, under `mot`, the state of the joint model in the
order of its modules; the training config beside it has the rest.
"""

import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from imagewam_jax.models.flow_matching import TIMESTEPS, FlowConfig
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.weights.io.torch_files import TensorName
from imagewam_jax.weights.layouts.imagewam import BACKBONE, EXPERT, MOT, PROPRIO, alias_names
from imagewam_jax.weights.layouts.metadata import Specs

# The official names for the dtype of parameters, positions and times.
MIXED_PRECISION = {"bfloat16": "bf16", "float32": "no"}
_MODULES = {
    BACKBONE: (
        "img_in",
        "time_in",
        "txt_in",
        "double_blocks",
        "single_blocks",
        "double_stream_modulation_img",
        "double_stream_modulation_txt",
        "single_stream_modulation",
        "final_layer.linear",
        "final_layer.adaLN_modulation",
    ),
    EXPERT: (
        "action_encoder",
        "time_in",
        "double_stream_modulation_img",
        "single_stream_modulation",
        "double_blocks",
        "single_blocks",
        "head.linear",
        "head.adaLN_modulation",
    ),
}


def checkpoint_contents(config: ImageWAMConfig, specs: Specs, step: int) -> dict[str, Any]:
    """The contents of an official checkpoint of all tensors `specs`, in the order of a native one.

    Aliases name the same tensors again, behind the tensors that they stand for.
    """
    aliases = {name: alias for alias, name in alias_names(config).items()}
    backbone, expert = (_in_order(specs, prefix) for prefix in (BACKBONE, EXPERT))
    mot = {name: name for name in backbone}
    mot |= {aliases[name]: name for name in backbone if name in aliases}
    mot |= {name: name for name in expert}
    contents = {
        "mot": OrderedDict(
            (name.removeprefix(MOT), TensorName(tensor)) for name, tensor in mot.items()
        ),
        "step": step,
        "torch_dtype": f"torch.{np.dtype(specs[f'{BACKBONE}img_in.weight'].dtype)}",
    }
    if config.proprio_dim is not None:
        contents["proprio_encoder"] = OrderedDict(
            (name, TensorName(PROPRIO + name)) for name in ("weight", "bias")
        )
    return contents


def _in_order(names: Iterable[str], prefix: str) -> list[str]:
    """The names below a prefix, sorted by module, then by block, and otherwise left in order."""
    modules = _MODULES[prefix]

    def position(name: str) -> tuple[int, int]:
        name = name.removeprefix(prefix)
        module = next(i for i, module in enumerate(modules) if name.startswith(f"{module}."))
        block = re.match(r"\w+_blocks\.(\d+)\.", name)
        return module, int(block[1]) if block else 0

    return sorted((name for name in names if name.startswith(prefix)), key=position)


def official_settings(config: ImageWAMConfig) -> dict[str, Any]:
    """The fields of an official training config that say what tensors do not show."""
    backbone, expert = config.backbone, config.expert
    packed = config.proprio_position is None
    return {
        "mixed_precision": MIXED_PRECISION[config.coordinate_dtype],
        "action_horizon": config.horizon,
        "model": {
            "proprio_dim": config.proprio_dim,
            "pack_proprio_after_text": packed,
            **({} if packed else {"qwen_context_len": config.proprio_position}),
            "flux2_lora_config": {"enabled": False},
            "action_dit_config": {
                "action_dim": expert.action_dim,
                "hidden_dim": expert.dim,
                "num_heads": backbone.heads,
                "attn_head_dim": backbone.head_dim,
                "num_layers_double": backbone.double_layers,
                "num_layers_single": backbone.single_layers,
                "mlp_ratio": expert.mlp_ratio,
                "max_action_horizon": expert.max_horizon,
            },
            "video_scheduler": _scheduler(config.target_flow),
            "action_scheduler": _scheduler(config.action_flow),
            "loss": {
                "lambda_video": config.target_loss_weight,
                "lambda_action": config.action_loss_weight,
            },
        },
        "flux2_params": {
            "in_channels": backbone.in_channels,
            "context_in_dim": backbone.text_dim,
            "hidden_size": backbone.dim,
            "num_heads": backbone.heads,
            "depth": backbone.double_layers,
            "depth_single_blocks": backbone.single_layers,
            "axes_dim": list(backbone.rope_axes),
            "theta": backbone.rope_theta,
            "mlp_ratio": backbone.mlp_ratio,
            "use_guidance_embed": False,
        },
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
