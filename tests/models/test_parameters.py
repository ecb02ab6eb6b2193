"""Nested dictionaries and their dotted paths."""

import pytest

from imagewam_jax.errors import ConversionError
from imagewam_jax.models.parameters import flatten, unflatten


def test_paths_of_leaves():
    tree = {"a": {"b": 1, "c": {"d": None}}, "e": [2, {"f": 3}], "empty": {}}
    flat = flatten(tree)
    assert flat == {"a.b": 1, "a.c.d": None, "e": [2, {"f": 3}]}
    assert unflatten(flat) == {name: tree[name] for name in ("a", "e")}


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        ({"mot": {"a": 1}, "mot.a": 2}, "mot.a"),
        ({"x": {0: 1, "0": 2}}, "x.0"),
        ({"a.b": {"c": 1}, "a": {"b": {"c": 1}}}, "a.b.c"),
    ],
)
def test_nothing_is_lost_to_a_path_that_is_there_twice(tree, path):
    with pytest.raises(ConversionError, match=f"two things are called {path}"):
        flatten(tree)
