"""Nested dictionaries, and flat ones from dotted paths."""

from collections.abc import Iterator, Mapping
from typing import Any

from imagewam_jax.conversion.errors import ConversionError


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths to leaves of a nested dictionary.

    ConversionError: two leaves have the same path, so that one of them would be lost.
    """
    flat: dict[str, Any] = {}
    for path, value in _leaves(tree, ""):
        if path in flat:
            raise ConversionError(f"two things are called {path}")
        flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
