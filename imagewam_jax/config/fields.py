"""Which values the fields of a config may have: their types, and the ranges of numbers.

The type of a field is that of its default. What depends on more than one field, on files or on
devices is checked where it is used.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from imagewam_jax.config.defaults import defaults
from imagewam_jax.errors import ConfigError, raise_all

# Sections whose fields depend on what they name, or are names that a user chooses.
OPEN_SECTIONS = (
    "autoencoder",
    "model.backbone",
    "model.expert",
    "data.rows",
    "data.mixtures",
    "evaluation.options",
)


class Range(NamedTuple):
    """Numbers that fit a field, in words and as a test."""

    expected: str
    holds: Callable[[float], bool]


_FROM_0 = Range("at least 0", lambda x: x >= 0)
_FROM_1 = Range("at least 1", lambda x: x >= 1)
_ABOVE_0 = Range("more than 0", lambda x: x > 0)
_SHARE = Range("0 to 1", lambda x: 0 <= x <= 1)
_DECAY = Range("0 or more, and less than 1", lambda x: 0 <= x < 1)
_WIDTH = Range("at least 0, or -1 for that of the dataset", lambda x: x >= -1)

# Of a list of numbers, each.
RANGES: Mapping[str, Range] = {
    "data.image_size": _FROM_1,
    "data.sample_every": _FROM_1,
    "data.stride": _FROM_1,
    "data.threads": _FROM_1,
    "data.prefetch": _FROM_1,
    "data.concurrent_reads": _FROM_1,
    "text.buckets": _FROM_1,
    "autoencoder.factor": _FROM_1,
    "model.backbone.dim": _FROM_1,
    "model.backbone.heads": _FROM_1,
    "model.expert.action_dim": _WIDTH,
    "model.proprio_dim": _WIDTH,
    "model.horizon": _FROM_1,
    "model.unroll": _FROM_1,
    "model.target_loss_weight": _FROM_0,
    "model.action_loss_weight": _FROM_0,
    "train.steps": _FROM_1,
    "train.batch_size": _FROM_1,
    "train.accumulate": _FROM_1,
    "train.log_every": _FROM_1,
    "train.validate_every": _FROM_0,
    "train.validation_samples": _FROM_0,
    "train.skip_not_finite": _FROM_0,
    "train.max_delay": _FROM_0,
    "train.checkpoint_every": _FROM_1,
    "train.keep_checkpoints": _FROM_1,
    "optimizer.learning_rate": _FROM_0,
    "optimizer.warmup_fraction": _SHARE,
    "optimizer.final_fraction": _SHARE,
    "optimizer.b1": _DECAY,
    "optimizer.b2": _DECAY,
    "optimizer.eps": _ABOVE_0,
    "optimizer.weight_decay": _FROM_0,
    "optimizer.clip_norm": _ABOVE_0,
    "optimizer.ema_decay": _DECAY,
    "acting.euler_steps": _FROM_1,
    "acting.execute_steps": _FROM_1,
}
# Lists of one length, and lists that may not be empty.
_LENGTHS = {"data.image_size": 2}
_FILLED = ("data.cameras", "text.buckets")
_NULLABLE = ("model.proprio_dim",)  # a policy without a robot state
_WORDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}


def check_fields(config: Mapping[str, Any]) -> None:
    """ConfigError for each field whose value is of another type or beyond its range."""
    raise_all(list(field_errors(config).values()))


def field_errors(config: Mapping[str, Any]) -> dict[str, ConfigError]:
    """What is wrong with each field, by its dotted name; fields without a default pass."""
    return dict(_errors(config, defaults().to_dict(), ""))


def _errors(found: Mapping, known: Mapping, prefix: str):
    for name, value in found.items():
        path, default = f"{prefix}{name}", known.get(name)
        if isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                yield path, ConfigError(f"{path} is {value!r}, expected a section of fields")
            else:
                yield from _errors(value, default, f"{path}.")
        elif (expected := _expected(path, value, default)) is not None:
            yield path, ConfigError(f"{path} is {value!r}, expected {expected}")


def _expected(path: str, value: Any, default: Any) -> str | None:
    """What a field should be instead of `value`; None: it is that."""
    if value is None and path in _NULLABLE:
        return None
    if isinstance(default, tuple):
        return _expected_list(path, value, default)
    if default is not None and not _is(value, type(default)):
        return _WORDS[type(default)]
    return _out_of_range(path, value)


def _expected_list(path: str, value: Any, default: tuple) -> str | None:
    kind = type(default[0]) if default else str
    length = _LENGTHS.get(path)
    what = {int: "whole numbers", str: "names"}[kind]
    whole = f"{length} {what}" if length else f"a list of {what}, such as {default or ('a', 'b')}"
    if isinstance(value, str) or not isinstance(value, Sequence):
        return whole
    if not all(_is(item, kind) for item in value) or (length and len(value) != length):
        return whole
    if not value and path in _FILLED:
        return "at least one"
    return next((e for e in (_out_of_range(path, item) for item in value) if e), None)


def _out_of_range(path: str, value: Any) -> str | None:
    fits = RANGES.get(path)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return None if fits is None or not number or fits.holds(value) else fits.expected


def _is(value: Any, kind: type) -> bool:
    if kind in (int, float):
        number = isinstance(value, int if kind is int else int | float)
        return number and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)
