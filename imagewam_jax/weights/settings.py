"""The config of a converted checkpoint: what its weights and files tell, and the rest."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from imagewam_jax.config.defaults import official_recipe
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import ConversionError
from imagewam_jax.preprocess.normalization import check_mode
from imagewam_jax.weights.layouts.metadata import Facts, Known, find

# Of a model section: how it is run, which changes none of its numbers.
RUN_TIME = ("attention", "remat", "unroll")


def merged_config(
    sections: Sequence[Mapping[str, Any]],
    facts: Facts,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The config sections of all parts; for a whole policy, a whole config around them.

    `config` is the user's, else the official recipe is what surrounds a policy. ConversionError:
    the user's speaks of another model, or of another normalisation than the files do.
    """
    told: dict[str, Any] = {}
    for section in sections:
        told = _merged(told, section)
    if "horizon" not in told.get("model", {}):
        return told
    whole = json.loads(official_recipe().to_json() if config is None else json.dumps(config))
    told["model"] |= {name: whole["model"][name] for name in RUN_TIME}
    if config is not None:
        _check_same(policy_config(whole["model"]), policy_config(told["model"]), "model")
    told["data"] = {"normalization": _mode(facts, config)}
    # What other sections of the config say of parts that are not here is not of this checkpoint.
    return _merged(whole, {**told, "autoencoder": told.get("autoencoder", whole["autoencoder"])})


def find_below(facts: Any, key: str) -> Any:
    """The value of a key anywhere in nested dictionaries; None where it is not there, or where it
    has several values."""
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

    walk(facts)
    return found.pop() if len(found) == 1 else None


def _mode(facts: Facts, config: Mapping[str, Any] | None) -> str:
    """How actions and states are normalised; empty where nothing says so."""
    given = find(facts, "normalization")
    files = find_below(facts.files if isinstance(facts, Known) else facts, "default_mode")
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


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        # A section that names something else has other fields.
        same = nested and value.get("name") == merged[key].get("name")
        merged[key] = _merged(merged[key], value) if same else value
    return merged


def _check_same(theirs: Any, ours: Any, where: str) -> None:
    """ConversionError naming the first field in which two configs differ."""
    if theirs == ours:
        return
    if type(theirs) is type(ours) and dataclasses.is_dataclass(theirs):
        for field in dataclasses.fields(theirs):
            name = field.name
            _check_same(getattr(theirs, name), getattr(ours, name), f"{where}.{name}")
    else:
        raise ConversionError(
            f"the config has {where}={theirs!r}, the weights are of one with {ours!r}"
        )
