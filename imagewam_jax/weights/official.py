"""The files beside an official `model.pt`, with the settings and statistics of its training.

`train_config.yaml` and `dataset_stats.json` are in the official terms
(docs/spec/imagewam_flux2.md, 7.6 and 8). Statistics are read from there when a policy is converted;
both files are written for an export.
"""

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml

from imagewam_jax.errors import ConversionError, DataError
from imagewam_jax.models.imagewam import ImageWAMConfig
from imagewam_jax.preprocess.statistics import (
    STATISTICS,
    FieldStatistics,
    select_statistics,
    statistics_from_json,
)
from imagewam_jax.weights.converted_config import RUN_TIME
from imagewam_jax.weights.layouts.families import family_of
from imagewam_jax.weights.layouts.imagewam import BACKBONE, imagewam_config
from imagewam_jax.weights.layouts.imagewam_checkpoint import (
    MIXED_PRECISION,
    official_settings,
    without_lora,
)
from imagewam_jax.weights.layouts.imagewam_settings import MODES, key_order, setting
from imagewam_jax.weights.layouts.metadata import Metadata, Specs
from imagewam_jax.weights.overrides import OVERRIDES
from imagewam_jax.weights.sidecar import STATISTICS_FILE

SETTINGS_FILE = "train_config.yaml"
FIELDS = ("action", "state")


def global_statistics(
    official: Mapping[str, Any],
    embodiment: str | None,
    dims: Mapping[str, int | None],
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, FieldStatistics]:
    """{"action": ..., "state": ...} from a `dataset_stats.json`, with all keys of a field joined.

    `embodiment` chooses from a per-embodiment file; `dims` has the policy's widths, None for no
    state; `settings` is the training config, which has the order of the keys. ConversionError: the
    file lacks something, or has other widths or keys.
    """
    if official.get("type") == "per_embodiment":
        choices = official.get("embodiments")
        choices = choices if isinstance(choices, Mapping) else {}
        if embodiment not in choices:
            raise ConversionError(
                f"dataset_stats.json has the embodiments {sorted(choices)}: give one as "
                "--set embodiment=..."
            )
        official = choices[embodiment]
    found = {}
    for field in FIELDS:
        if not isinstance(official.get(field), Mapping):
            raise ConversionError(f"dataset_stats.json has no {field!r}; it has {sorted(official)}")
        try:
            found[field] = _joined(_in_order(official[field], key_order(settings, field)))
        except (AttributeError, DataError, TypeError, ValueError) as error:
            raise ConversionError(f"dataset_stats.json: {field}: {error}") from error
        width = len(found[field]["min"])
        if dims[field] not in (None, width):
            raise ConversionError(
                f"dataset_stats.json has {width} {field} dimensions, the weights have {dims[field]}"
            )
    return found


def _in_order(keys: Mapping[str, Any], order: list[str] | None) -> Mapping[str, Any]:
    """The keys of a field in the order of the training config, which need not be the file's."""
    if order is None or list(keys) == order:
        return keys
    if sorted(keys) != sorted(order):
        raise ValueError(f"has the keys {list(keys)}, shape_meta of the training config {order}")
    return {key: keys[key] for key in order}


def _joined(keys: Mapping[str, Any]) -> FieldStatistics:
    """The statistics of a field, with those of all its keys joined in their order."""
    entries = [
        select_statistics(entry, stepwise=False) for entry in statistics_from_json(keys).values()
    ]
    joined = {n: np.concatenate([np.atleast_1d(e[n]) for e in entries]) for n in STATISTICS}
    for name, values in joined.items():
        if len(values) != len(joined["min"]) or not np.isfinite(values.astype(np.float64)).all():
            raise ValueError(f"global_{name} is {values.tolist()}, expected one number for each")
    return joined


def settings(config: ImageWAMConfig, metadata: Mapping[str, Any], specs: Specs) -> dict[str, Any]:
    """The contents of `train_config.yaml` for a policy whose tensors have these specs.

    They are those of the official checkpoint that the policy was converted from, with the user's
    overrides under our names; or, for a policy that was trained here, whatever is known.
    """
    stored = metadata.get("official", {}).get("config")
    chosen = without_lora(stored) if stored else official_settings(config)
    if not _describes(chosen, config, specs):
        chosen |= _overrides(config)
    if imagewam_config(specs, chosen).coordinate_dtype != config.coordinate_dtype:
        chosen["coordinate_dtype"] = config.coordinate_dtype
    mode = metadata["config"].get("data", {}).get("normalization")
    if mode and not stored:
        chosen["data"] = {"train": _data_settings(config, metadata["config"]["data"])}
    elif mode and mode != setting(chosen, *MODES):
        chosen["normalization"] = mode
    return chosen


def _data_settings(config: ImageWAMConfig, data: Mapping[str, Any]) -> dict[str, Any]:
    """The section `data.train` of an official training config, as far as it decides numbers."""
    return {
        "num_frames": config.horizon + 1,
        "global_sample_stride": data.get("stride", 1),
        "endpoint_frames_only": True,
        "action_video_freq_ratio": 1,
        "processor": {
            "action_output_dim": config.expert.action_dim,
            "proprio_output_dim": config.proprio_dim,
            "use_stepwise_action_norm": False,
            "norm_default_mode": data["normalization"],
            "norm_exception_mode": None,
        },
    }


def statistics(metadata: Mapping[str, Any], horizon: int) -> dict[str, Any] | None:
    """The contents of `dataset_stats.json`: those of the official checkpoint, or the statistics of
    our training, which are the same for all steps of a chunk. None: they are not known."""
    if stored := metadata.get("official", {}).get("statistics"):
        return stored
    by_dataset = metadata.get("statistics")
    if by_dataset is None:
        return None
    first, *others = by_dataset.values()
    if any(other != first for other in others):
        raise ConversionError(
            f"the policy was trained on {sorted(by_dataset)}, each with its own statistics: "
            f"{STATISTICS_FILE} has those of one"
        )
    return {
        "state": {"default": _entry(first["state"], 1)},
        "action": {"default": _entry(first["action"], horizon)},
        "num_episodes": first["source"].get("episodes"),
        "num_transition": first["source"].get("frames"),
    }


def official_sidecar(
    config: ImageWAMConfig, metadata: Mapping[str, Any], specs: Specs
) -> dict[str, str]:
    """The text of both files, by name. Prints a note if statistics are not known, and if the
    official code would not compute positions and times in the policy's dtype. ConversionError: the
    settings that were kept do not belong to these tensors."""
    contents = settings(config, metadata, specs)
    texts = {SETTINGS_FILE: yaml.safe_dump(contents, sort_keys=False, allow_unicode=True)}
    first = BACKBONE + family_of(config.backbone).first
    if np.dtype(specs[first].dtype).name != config.coordinate_dtype:
        precision = MIXED_PRECISION[config.coordinate_dtype]
        print(
            f"positions and times of this policy are in {config.coordinate_dtype}, its weights are "
            f"not: run the official code with mixed_precision {precision!r}"
        )
    found = statistics(metadata, config.horizon)
    if found is None:
        print(f"{STATISTICS_FILE} is not written: the statistics are not known")
    else:
        texts[STATISTICS_FILE] = json.dumps(found, indent=4)
    return texts


def _describes(metadata: Metadata, config: ImageWAMConfig, specs: Specs) -> bool:
    """Whether converting the tensors with this metadata gives this config again."""
    try:
        found = imagewam_config(specs, metadata)
    except ConversionError:
        return False
    same = {name: getattr(config, name) for name in (*RUN_TIME, "coordinate_dtype")}
    return dataclasses.replace(found, **same) == config


def _overrides(config: ImageWAMConfig) -> dict[str, Any]:
    """The values of a config that a user can set: see `overrides.OVERRIDES`."""
    return {
        **{
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(config.backbone).items()
            if name in OVERRIDES
        },
        "horizon": config.horizon,
        "max_horizon": config.expert.max_horizon,
        "pack_proprio_after_text": config.proprio_position is None,
        "proprio_position": config.proprio_position,
    }


def _entry(field: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """A field's statistics in the official form: for every step of a chunk, and for all steps."""
    every_step = {f"stepwise_{n}": np.tile(field[n], (steps, 1)).tolist() for n in STATISTICS}
    return every_step | {f"global_{n}": field[n] for n in STATISTICS}
