"""Mapping tables and their readers, on small invented layouts."""

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.tensors import (
    ArraySource,
    Joined,
    Renamed,
    contiguous,
    count_not_finite,
)
from imagewam_jax.weights.layouts.mapping import (
    ForeignView,
    Rule,
    TensorSlice,
    TreeReader,
    check,
    foreign_shapes,
    rule,
    to_foreign,
    under,
)
from imagewam_jax.weights.layouts.metadata import count, fill_from_preset, find
from tests.weights.foreign import to_tree

# Fused on either axis, stacked or not, in another order of heads, exchanged, and permuted.
RULES = [
    Rule(
        "block.{i}.fused",
        (
            TensorSlice("stack.q", "(n h) i -> i (h n)", {"n": 2, "h": 3}, width=6),
            TensorSlice("stack.up", "o i -> i o", width=4),
        ),
        layers=3,
    ),
    Rule(
        "block.{i}.out",
        (
            TensorSlice("stack.out", "o (n h) -> (h n) o", {"n": 2, "h": 3}, width=6),
            TensorSlice("stack.down", "o i -> i o", width=4),
        ),
        axis=1,
        layers=3,
    ),
    Rule("halves", (TensorSlice("halves", "o i -> i o", exchange=1),)),
    rule("conv", "conv", "o i y x -> y x i o"),
    rule("bias", "bias", "o -> o"),
]
SHAPES = {"fused": (10, 5), "out": (5, 10), "halves": (8, 5), "conv": (4, 2, 3, 3), "bias": (7,)}


def foreign() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    names = {name: name.rsplit(".", 1)[-1] for r in RULES for name in r.names()}
    return {n: rng.normal(size=SHAPES[kind]).astype(np.float32) for n, kind in names.items()}


def like() -> dict:
    shapes = {
        "stack": {"q": (3, 5, 6), "up": (3, 5, 4), "out": (3, 6, 5), "down": (3, 4, 5)},
        "halves": (5, 8),
        "conv": (3, 3, 2, 4),
        "bias": (7,),
    }
    return jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, np.float32), shapes, is_leaf=lambda s: type(s) is tuple
    )


def test_each_number_goes_where_the_table_says():
    tensors = foreign()
    tree = to_tree(RULES, tensors, like(), "file")
    for i in range(3):
        fused, out = tensors[f"block.{i}.fused"], tensors[f"block.{i}.out"]
        order = [0, 3, 1, 4, 2, 5]
        np.testing.assert_array_equal(tree["stack"]["q"][i], fused[order].T)
        np.testing.assert_array_equal(tree["stack"]["up"][i], fused[6:].T)
        np.testing.assert_array_equal(tree["stack"]["out"][i], out[:, order].T)
        np.testing.assert_array_equal(tree["stack"]["down"][i], out[:, 6:].T)
    np.testing.assert_array_equal(tree["halves"][:, :4], tensors["halves"][4:].T)
    np.testing.assert_array_equal(tree["halves"][:, 4:], tensors["halves"][:4].T)
    assert tree["conv"][1, 2, 0, 3] == tensors["conv"][3, 0, 1, 2]


def test_both_directions_are_inverse():
    tensors = foreign()
    back = to_foreign(RULES, to_tree(RULES, tensors, like(), "file"))
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, err_msg=name)


def test_shapes_of_both_sides_agree():
    expected = {name: tensor.shape for name, tensor in foreign().items()}
    assert foreign_shapes(RULES, like()) == expected


def test_one_layout_seen_as_another():
    """A source in one layout is read in another, a tensor at a time, with neither in memory."""
    apart = [
        rule("q.{i}", "stack.q", "(o p) i -> i (o p)", layers=3, p=3),
        rule("up.{i}", "stack.up", "o i -> i o", layers=3),
        rule("out.{i}", "stack.out", "(a b) c -> (b a) c", layers=3, a=2),
        rule("down.{i}", "stack.down", "i o -> i o", layers=3),
        *RULES[2:],
    ]
    tensors = foreign()
    view = ForeignView(apart, like(), TreeReader(RULES, ArraySource(tensors, "file")), "file")
    tree = to_tree(RULES, tensors, like(), "file")
    assert view.specs["q.1"].shape == (6, 5)
    np.testing.assert_array_equal(view.read("q.1"), tree["stack"]["q"][1].T)
    again = to_tree(apart, view, like(), "view")
    jax.tree.map(np.testing.assert_array_equal, again, tree)


def test_rules_below_a_prefix_and_a_path():
    moved = under(RULES, prefix="model.", path="backbone")
    tensors = {f"model.{name}": tensor for name, tensor in foreign().items()}
    tree = to_tree(moved, tensors, {"backbone": like()}, "file")
    expected = to_tree(RULES, foreign(), like(), "file")
    jax.tree.map(np.testing.assert_array_equal, tree["backbone"], expected)


def test_a_table_that_does_not_fit_the_model():
    model = like() | {"more": like()["bias"]}
    with pytest.raises(ConversionError, match=r"file: not both in the model .*: \['more'\]"):
        to_tree(RULES, foreign(), model, "file")
    del model["more"], model["bias"]
    with pytest.raises(ConversionError, match=r"not both in the model .*: \['bias'\]"):
        to_tree(RULES, foreign(), model, "file")


def test_the_check_reads_nothing():
    class Unreadable(ArraySource):
        def read(self, name):
            raise AssertionError("read")

    check(RULES, Unreadable(foreign(), "file").specs, like(), "file")


def test_names_of_several_sources():
    one, two = ArraySource({"a": np.zeros(2)}, "one"), ArraySource({"b": np.ones(3)}, "two")
    both = Joined(one, Renamed(two, lambda name: f"{name}2"))
    assert set(both.specs) == {"a", "b2"} and both.read("b2").shape == (3,)
    with pytest.raises(ConversionError, match="a is in both one and one"):
        Joined(one, one)


BITS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("name", BITS)
@settings(deadline=None)
@given(data=st.data())
def test_numbers_that_are_not_finite_are_counted(name, data):
    dtype = np.dtype(BITS[name])
    bits = np.dtype(f"u{dtype.itemsize}")
    values = data.draw(hnp.arrays(bits, hnp.array_shapes(max_side=9))).view(dtype)
    expected = int((~np.isfinite(values.astype(np.float64))).sum())
    assert count_not_finite(values) == expected


@settings(deadline=None)
@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=4, max_side=70)), st.data())
def test_contiguous_copies_are_the_same_numbers(bits, data):
    view = bits.view(ml_dtypes.bfloat16).transpose(data.draw(st.permutations(range(bits.ndim))))
    copy = contiguous(view)
    assert copy.flags.c_contiguous and copy.dtype == view.dtype
    np.testing.assert_array_equal(copy.view(np.uint16), view.view(np.uint16))


def test_facts():
    specs = dict.fromkeys(["a.0.w", "a.11.w", "a.x", "b.3.w"])
    assert (count(specs, "a."), count(specs, "b."), count(specs, "c.")) == (12, 4, 0)
    metadata = {"a": {"b": 0}, "c": None, "d": 3}
    assert find(metadata, "a.b", "d") == 0  # which is a value
    assert find(metadata, "c", "a.b.c", "d") == 3 and find(metadata, "c", "e") is None


class Preset:
    width, theta = 4, 100.0


def test_what_is_not_told_comes_from_the_model_of_that_size():
    presets = (Preset,)
    assert fill_from_preset({"width": 4}, {"theta": None}, presets, "here") == {"theta": 100.0}
    assert fill_from_preset({"width": 4}, {"theta": 7.0}, presets, "here") == {"theta": 7.0}
    assert fill_from_preset({"width": 5}, {"theta": 7.0}, presets, "here") == {"theta": 7.0}
    with pytest.raises(ConversionError, match=r"here: .* do not tell \['theta'\].*--set theta="):
        fill_from_preset({"width": 5}, {"theta": None}, presets, "here")
