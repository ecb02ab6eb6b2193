"""The config of a converted checkpoint: what its weights and sidecar files say, and the rest."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from imagewam_jax.config.defaults import official_recipe
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import ConversionError
from imagewam_jax.preprocess.normalization import check_mode
from imagewam_jax.weights.layouts.metadata import Metadata, SourceMetadata, find

# The fields of a model section that say how it is run and change none of its numbers.
RUN_TIME = ("attention", "remat", "unroll")


def merged_config(
    sections: Sequence[Mapping[str, Any]],
    metadata: Metadata,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Merge the config sections of all components; for a whole policy, complete them to a config.

    A policy's other sections come from the user's `config`, else from the official recipe.
    ConversionError: the user's config is for another model or normalization than the files.
    """
    merged: dict[str, Any] = {}
    for section in sections:
        merged = _merge(merged, section)
    if "horizon" not in merged.get("model", {}):
        return merged
    whole = json.loads(official_recipe().to_json() if config is None else json.dumps(config))
    merged["model"] |= {name: whole["model"][name] for name in RUN_TIME}
    if config is not None:
        _check_same(policy_config(whole["model"]), policy_config(merged["model"]), "model")
    merged["data"] = {"normalization": _mode(metadata, config)}
    return _merge(whole, merged)


def find_below(metadata: Any, key: str) -> Any:
    """The text under a key anywhere in nested dictionaries; None if it is absent or ambiguous."""
    found = set()

    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            if isinstance(node.get(key), str):
                found.add(node[key])
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(metadata)
    return found.pop() if len(found) == 1 else None


def _mode(metadata: Metadata, config: Mapping[str, Any] | None) -> str:
    """The normalization mode of actions and states; empty if nothing says so."""
    given = find(metadata, "normalization")
    files = find_below(
        metadata.files if isinstance(metadata, SourceMetadata) else metadata, "default_mode"
    )
    chosen = None if config is None else config["data"]["normalization"]
    if given is None and files and chosen and files != chosen:
        raise ConversionError(
            f"the config has data.normalization={chosen!r}, the training config beside the weights "
            f"default_mode={files!r}: give the right one as --set normalization=..."
        )
    mode = given or files or chosen or ""
    if mode:
        check_mode(mode)
    return mode


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `over`, section by section."""
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        # A section with another `name` has other fields, so that it replaces the whole section.
        same = nested and value.get("name") == merged[key].get("name")
        merged[key] = _merge(merged[key], value) if same else value
    return merged


def _check_same(config: Any, weights: Any, where: str) -> None:
    """ConversionError that names the first field in which two configs differ."""
    if config == weights:
        return
    if type(config) is type(weights) and dataclasses.is_dataclass(config):
        for field in dataclasses.fields(config):
            name = field.name
            _check_same(getattr(config, name), getattr(weights, name), f"{where}.{name}")
    else:
        raise ConversionError(
            f"the config has {where}={config!r}, the weights are of one with {weights!r}"
        )
