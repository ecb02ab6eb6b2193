"""Mixtures and what their weights mean, against numbers worked out by hand."""

import math

import pytest

from imagewam_jax.data.registry.mixtures import (
    MIXTURES,
    Entry,
    Mixture,
    mixture_from_config,
    shares,
)
from imagewam_jax.errors import DataError

THREE = Mixture((Entry("a", 2.0), Entry("b", 0.5), Entry("c", 1.0)))


def test_shares_of_weights_times_transitions():
    # 2 x 100 = 200, 0.5 x 400 = 200, 1 x 600 = 600: together 1000.
    got = shares(THREE, {"a": 100, "b": 400, "c": 600, "unused": 9}, scale_by_transitions=True)
    assert got == {"a": 0.2, "b": 0.2, "c": 0.6}
    assert list(got) == ["a", "b", "c"]


def test_shares_of_weights_alone():
    # 2 + 0.5 + 1 = 3.5
    got = shares(THREE, {}, scale_by_transitions=False)
    assert got == pytest.approx({"a": 4 / 7, "b": 1 / 7, "c": 2 / 7}, abs=1e-15)


def test_shares_sum_to_one():
    soup = MIXTURES["oxe_magic_soup"]
    sizes = {entry.dataset: 10_007 * (n + 1) for n, entry in enumerate(soup.entries)}
    assert math.fsum(shares(soup, sizes, True).values()) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("steps", [{"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 0}])
def test_shares_of_a_dataset_without_transitions(steps):
    with pytest.raises(DataError, match=r"'c' has (None|0) transitions, expected"):
        shares(THREE, steps, True)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_must_be_a_number_above_0(weight):
    with pytest.raises(DataError, match=r"'a' has the weight .*, expected a number above 0"):
        Entry("a", weight)


def test_a_dataset_occurs_once():
    with pytest.raises(DataError, match=r"\['b'\] occur more than once"):
        Mixture((Entry("b", 1.0), Entry("a", 1.0), Entry("b", 2.0)))
    with pytest.raises(DataError, match="no datasets"):
        Mixture(())


def test_the_public_soups():
    """Counts, sums and the entries that differ, as published."""
    first = {entry.dataset: entry for entry in MIXTURES["oxe_magic_soup"].entries}
    second = {entry.dataset: entry for entry in MIXTURES["oxe_magic_soup_plus"].entries}
    assert (len(first), len(second)) == (25, 27)
    assert second.keys() - first.keys() == {"fmb_dataset", "dobbe", "droid"}
    assert first.keys() - second.keys() == {"nyu_door_opening_surprising_effectiveness"}
    assert all(first[n].weight == second[n].weight for n in first.keys() & second.keys())
    assert first["kuka"] == Entry("kuka", 0.8341046294, blank_language=True)
    assert first["fractal20220817_data"].weight == 0.54087122203
    assert second["droid"].weight == 0.06 and second["dobbe"].weight == 0.2
    assert not any(entry.blank_language for entry in second.values())
    assert sum(entry.blank_language for entry in first.values()) == 12
    # 0.541 + 0.834 + bridge 1, taco 2, jaco 1, cable 1, turk 2, door 1, viola 2, ur5 2, toto 1,
    # table 0.1, hydra 2, buds 1, play 3, furniture 0.1, kitchen 2, sailor 1, sirius 1, bc_z 0.2,
    # edan 1, iamlab 1, mutex 1, fanuc 2, stretch 1
    total = sum(entry.weight for entry in first.values())
    assert total == pytest.approx(0.54087122203 + 0.8341046294 + 29.4, abs=1e-12)


def test_other_mixtures():
    libero = MIXTURES["libero"].entries
    assert [entry.dataset for entry in libero] == [
        "libero_spatial_no_noops",
        "libero_object_no_noops",
        "libero_goal_no_noops",
        "libero_10_no_noops",
    ]
    assert {entry.weight for entry in libero} == {1.0}
    assert {entry.dataset for entry in MIXTURES["bridge_rt_1"].entries} == {
        "bridge_dataset",
        "fractal20220817_data",
    }
    assert len(MIXTURES["rtx"].entries) == 11


def test_a_users_mixture():
    section = [{"dataset": "a", "weight": 2, "blank_language": True}, {"dataset": "b", "weight": 1}]
    assert mixture_from_config(section) == Mixture(
        (Entry("a", 2.0, blank_language=True), Entry("b", 1.0))
    )


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("libero", "mixture is 'libero', expected a list"),
        ({"dataset": "a", "weight": 1}, "expected a list"),
        ([], "no datasets"),
        (["a"], "entry 0 is 'a', expected a dataset and its weight"),
        ([{"dataset": "a"}], r"entry 0 .*missing \['weight'\]"),
        ([{"dataset": "a", "weight": 1, "w": 2}], r"unknown fields \['w'\]"),
        ([{"dataset": "a", "weight": "1"}], "the weight of 'a' is '1'"),
        ([{"dataset": "a", "weight": True}], "the weight of 'a' is True"),
        ([{"dataset": "a", "weight": -1}], "'a' has the weight -1"),
        ([{"dataset": "a", "weight": 1, "blank_language": "no"}], "blank_language is 'no'"),
        ([{"dataset": "a", "weight": 1, "version": 2}], "the version of 'a' is 2, expected a name"),
        ([{"dataset": 3, "weight": 1}], "there is no dataset 3"),
        ([{"dataset": "a", "weight": 1}] * 2, r"\['a'\] occur more than once"),
    ],
)
def test_a_users_mixture_that_is_wrong(section, expected):
    with pytest.raises(DataError, match=expected):
        mixture_from_config(section)
