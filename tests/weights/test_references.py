"""References of a config: filled in from the same file, or left for whoever needs the value."""

from pathlib import Path

import pytest

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.references import resolved, unresolved

FILE = Path("train_config.yaml")


def test_plain_references():
    config = {
        "data": {"train": {"width": 8, "same": "${.width}", "list": [3, "${..width}", "${.0}"]}},
        "model": {"proprio_dim": "${data.train.width}", "section": "${data.train}"},
        "name": "w${data.train.width}-${data.train.list[0]}",
        "chain": "${model.section.list.1}",
    }
    train = {"width": 8, "same": 8, "list": [3, 8, 3]}
    assert resolved(config, FILE) == {
        "data": {"train": train},
        "model": {"proprio_dim": 8, "section": train},
        "name": "w8-3",
        "chain": 8,
    }


def test_what_needs_more_than_the_file_stays_as_it_is():
    config = {
        "home": "${oc.env:HOME}",
        "sum": "${eval:'1+1'}",
        "gone": "${nothing.there}",
        "text": "x ${gone.far} y",
        "escaped": r"\${home}",
        "open": "???",
    }
    found = resolved(config, FILE)
    assert found == config
    assert [name for name, value in found.items() if unresolved(value)] == list(config)
    assert not unresolved("plain") and not unresolved(3) and not unresolved(None)


def doubled(value, width):
    config = {"a0": value}
    for i in range(1, 12):
        config[f"a{i}"] = width(f"${{a{i - 1}}}")
    return config


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"a": "${a}"}, "a: .* leads back to itself"),
        ({"a": "${b}", "b": "x${a}"}, "leads back to itself"),
        ({"a": {"b": "${a}"}}, "a.b: .* leads back to itself"),
        (doubled(["x"] * 10, lambda a: [a] * 10), "stand for more than 100,000 values"),
        (doubled("x" * 10, lambda a: a * 10), "a text of more than 10,000 characters"),
        (
            {"a0": 1} | {f"a{i}": f"${{a{i - 1}}}" for i in range(1, 2000)} | {"a0": "${a1999}"},
            "more than 32 references lead to each other",
        ),
    ],
)
def test_references_without_end(config, problem):
    with pytest.raises(ConversionError, match=f"^train_config.yaml: .*{problem}"):
        resolved(config, FILE)
