"""The config of a converted checkpoint: what its weights and files tell, and the rest."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from imagewam_jax.conversion.errors import ConversionError
from imagewam_jax.conversion.facts import Facts, find
from imagewam_jax.policies.recipes import official_recipe

# Of a model section: how it is run, which changes none of its numbers.
RUN_TIME = ("attention", "remat", "unroll")


def merged_config(
    sections: Sequence[Mapping[str, Any]],
    facts: Facts,
    config: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The config sections of all parts; for a whole policy, a whole config around them.

    `config` is the user's, else the official recipe is what surrounds a policy. ConversionError:
    the user's speaks of another model.
    """
    told: dict[str, Any] = {}
    for section in sections:
        told = _merged(told, section)
    if "horizon" not in told.get("model", {}):
        return told
    whole = json.loads(official_recipe().to_json()) if config is None else dict(config)
    told["model"] |= {name: whole["model"][name] for name in RUN_TIME}
    if config is not None:
        _check_same(whole["model"], json.loads(json.dumps(told["model"])))
    mode = find(facts, "normalization") or find_below(facts, "default_mode")
    if mode is not None:
        told["data"] = {"normalization": mode}
    elif config is None:
        told["data"] = {"normalization": ""}  # not known
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


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        # A section that names something else has other fields.
        same = nested and value.get("name") == merged[key].get("name")
        merged[key] = _merged(merged[key], value) if same else value
    return merged


def _check_same(theirs: Mapping[str, Any], ours: Mapping[str, Any], prefix: str = "model") -> None:
    for key in sorted({*theirs, *ours}):
        given, told = theirs.get(key), ours.get(key)
        if isinstance(given, Mapping) and isinstance(told, Mapping):
            _check_same(given, told, f"{prefix}.{key}")
        elif given != told and not (given is None and key not in theirs and told is None):
            raise ConversionError(
                f"the config has {prefix}.{key}={given!r}, the weights are of one with {told!r}"
            )
