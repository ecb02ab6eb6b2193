"""Statistics of actions and states as normalization takes them, and the JSON files that keep them.

They are computed in `data.statistics`.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagewam_jax.errors import DataError
from imagewam_jax.files import space_advice, written_whole

# "min", "max", "mean", "std", "q01", "q99": float64 [..., dim]
FieldStatistics = dict[str, np.ndarray]
STATISTICS = ("min", "max", "mean", "std", "q01", "q99")
# The two halves of one key's entry in the official statistics.
PREFIXES = ("stepwise", "global")


def select_statistics(official: Mapping[str, np.ndarray], stepwise: bool) -> FieldStatistics:
    """The stepwise or global half of one key's entry, named as in `FieldStatistics`."""
    prefix = PREFIXES[0] if stepwise else PREFIXES[1]
    missing = [name for name in STATISTICS if f"{prefix}_{name}" not in official]
    if missing:
        raise DataError(f"the statistics lack {prefix}_{missing[0]}; they have {sorted(official)}")
    return {name: official[f"{prefix}_{name}"] for name in STATISTICS}


def write_statistics(path: Path, statistics: dict) -> None:
    """Writes nested statistics as JSON, complete or not at all; float64 round-trips exactly.

    DataError: the file is there already with other statistics, or cannot be written.
    """
    path, content = Path(path), statistics_to_json(statistics)
    try:
        there = statistics_to_json(read_statistics(path)) if path.exists() else content
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is there already, and holds no statistics: {error}") from error
    if there != content:
        raise DataError(f"{path}: holds other statistics; they are never changed, remove the file")
    try:
        with written_whole(path) as file:
            file.write(json.dumps(content, indent=2).encode())
    except OSError as error:
        raise DataError(f"{path}: could not be written: {error}{space_advice(error)}") from error


def read_statistics(path: Path) -> dict:
    return statistics_from_json(json.loads(Path(path).read_text()))


def statistics_to_json(statistics: dict) -> dict:
    """Turns arrays into nested lists, at any depth."""
    return _replaced(statistics, np.ndarray, np.ndarray.tolist)


def statistics_from_json(statistics: dict) -> dict:
    """Turns lists into float64 arrays, at any depth."""
    return _replaced(statistics, list, lambda values: np.array(values, np.float64))


def _replaced(tree: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Nested dictionaries with `change` of every value of some kind."""
    if isinstance(tree, dict):
        return {key: _replaced(value, kind, change) for key, value in tree.items()}
    return change(tree) if isinstance(tree, kind) else tree
