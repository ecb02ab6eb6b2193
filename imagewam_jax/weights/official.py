"""The files beside an official `model.pt`: what it was trained with, in the official terms."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.preprocess.statistics import STATISTICS
from imagewam_jax.weights import sidecar as beside
from imagewam_jax.weights.layouts.imagewam import BACKBONE, imagewam_config
from imagewam_jax.weights.layouts.imagewam_checkpoint import (
    MIXED_PRECISION,
    official_settings,
    without_lora,
)
from imagewam_jax.weights.layouts.metadata import Specs
from imagewam_jax.weights.settings import RUN_TIME, find_below

SETTINGS = "train_config.yaml"


def settings(config: ImageWAMConfig, metadata: Mapping[str, Any], specs: Specs) -> dict[str, Any]:
    """What `train_config.yaml` is to say of a policy whose tensors have these specs.

    That is what stood beside the official checkpoint that it was converted from, and under our
    names what the user gave besides; or, of a policy of ours, what is known.
    """
    stored = metadata.get("official", {}).get("config")
    chosen = without_lora(stored) if stored else official_settings(config)
    if not _tells(chosen, config, specs):
        chosen |= _given(config)
    if imagewam_config(specs, chosen).coordinate_dtype != config.coordinate_dtype:
        chosen["coordinate_dtype"] = config.coordinate_dtype
    mode = metadata["config"].get("data", {}).get("normalization")
    if mode and mode != find_below(chosen, "default_mode"):
        chosen["normalization"] = mode
    return chosen


def statistics(metadata: Mapping[str, Any], horizon: int) -> dict[str, Any] | None:
    """What `dataset_stats.json` is to say: what stood beside the official checkpoint, or what a
    policy of ours was trained with, which is one set of numbers for all steps of a chunk."""
    if stored := metadata.get("official", {}).get("statistics"):
        return stored
    by_dataset = metadata.get("statistics")
    if by_dataset is None:
        return None
    first, *others = by_dataset.values()
    if any(other != first for other in others):
        raise ConversionError(
            f"the policy was trained on {sorted(by_dataset)}, each with its own statistics: "
            f"{beside.STATISTICS} has those of one"
        )
    return {
        "state": {"default": _entry(first["state"], 1)},
        "action": {"default": _entry(first["action"], horizon)},
        "num_episodes": first["source"].get("episodes"),
        "num_transition": first["source"].get("frames"),
    }


def files_beside(
    config: ImageWAMConfig, metadata: Mapping[str, Any], specs: Specs
) -> dict[str, str]:
    """Both files, as text, by their names. Says so where statistics are not known, and where the
    official code would not have positions and times in the dtype that the policy has them in.
    ConversionError: the settings that were kept are not those of these tensors."""
    said = settings(config, metadata, specs)
    texts = {SETTINGS: yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}
    if np.dtype(specs[f"{BACKBONE}img_in.weight"].dtype).name != config.coordinate_dtype:
        precision = MIXED_PRECISION[config.coordinate_dtype]
        print(
            f"positions and times of this policy are in {config.coordinate_dtype}, its weights are "
            f"not: run the official code with mixed_precision {precision!r}"
        )
    found = statistics(metadata, config.horizon)
    if found is None:
        print(f"{beside.STATISTICS} is not written: the statistics are not known")
    else:
        texts[beside.STATISTICS] = json.dumps(found, indent=4)
    return texts


def _tells(facts: Mapping[str, Any], config: ImageWAMConfig, specs: Specs) -> bool:
    """Whether converting the tensors with these facts gives this config again."""
    try:
        found = imagewam_config(specs, facts)
    except ConversionError:
        return False
    given = {name: getattr(config, name) for name in (*RUN_TIME, "coordinate_dtype")}
    return dataclasses.replace(found, **given) == config


def _given(config: ImageWAMConfig) -> dict[str, Any]:
    """What the user can give of a config: see `settable`."""
    return {
        "rope_axes": list(config.backbone.rope_axes),
        "rope_theta": config.backbone.rope_theta,
        "horizon": config.horizon,
        "max_horizon": config.expert.max_horizon,
        "pack_proprio_after_text": config.proprio_position is None,
        "proprio_position": config.proprio_position,
    }


def _entry(field: Mapping[str, Any], steps: int) -> dict[str, Any]:
    every_step = {f"stepwise_{n}": np.tile(field[n], (steps, 1)).tolist() for n in STATISTICS}
    return every_step | {f"global_{n}": field[n] for n in STATISTICS}
