"""Text files beside weights: what is read of them, and what is refused before it can do harm."""

import re
import time

import pytest

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io import text_files
from imagewam_jax.weights.io.text_files import read_json, read_text, read_yaml


def test_numbers_of_yaml_are_those_that_omegaconf_reads(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "rate: 1e-4\nshift: 5.0\ntheta: 2E+3\ncount: 1_000\ndate: 2026-07-30\nno: no\ntext: 1e5x\n"
        "base: &base {a: 1, b: 2}\nmerged: {<<: *base, b: 3}\nnothing: ~\n"
    )
    assert read_yaml(path) == {
        "rate": 1e-4,
        "shift": 5.0,
        "theta": 2000.0,
        "count": 1000,
        "date": "2026-07-30",
        "False": False,
        "text": "1e5x",
        "base": {"a": 1, "b": 2},
        "merged": {"a": 1, "b": 3},
        "nothing": None,
    }


def test_json_may_begin_with_a_mark_of_its_encoding(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": [1, 2.5, "\xc3\xa9", null, true]}')
    assert read_json(path) == {"a": [1, 2.5, "é", None, True]}


def lists_of_lists(text: str) -> str:
    """Text of 500 bytes that stands for a thousand million values."""
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"a{i}: &a{i} [{','.join([text.format(i - 1)] * 10)}]" for i in range(1, 9)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (lists_of_lists("*a{}"), "its aliases stand for more than 300,000 values"),
        (lists_of_lists("[*a{}]"), "its aliases stand for more than 300,000 values"),
        ("x: &a [*a]", "an alias of what the alias is in"),
        ("x: &a {y: {z: *a}}", "an alias of what the alias is in"),
        ("a: " + "[" * 5000, "nested more than 64 deep"),
        ("a: " + "[" * 70 + "]" * 70, "nested more than 64 deep"),
        ("a: !!python/object/apply:os.system ['ls']", "the tag .*os.system"),
        ("a: !!set {x, y}", "the tag .*set"),
        ("a: !mine x", "the tag !mine"),
        ("a: 1\nb: 2\na: 3", "the key 'a' stands twice"),
        ("1: 2\n'1': 3", "the key '1' stands twice"),
        ("? [a]\n: b", "is no key"),
        ("b: [1, {c: .nan}]", r"b\[1\].c is nan, expected a finite number"),
        ("a: -.inf", "a is -inf"),
        ("a: 1e999", "a is inf"),
        ("a: 1" + "0" * 30, "a is 1000.*, expected a finite number"),
        ("a: 1" + "0" * 9000, "cannot be read: .*digits"),
        ("a: 1\n---\nb: 2", "cannot be read: .*single document"),
        ("a: [1, 2", "cannot be read: .*line 1"),
        ("", "is an empty file"),
        ("- a", "holds a list, expected a dictionary"),
    ],
)
def test_yaml_that_is_refused(tmp_path, text, problem):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ConversionError, match=f"^{re.escape(str(path))}: .*{problem}") as error:
        read_yaml(path)
    assert "\n" not in str(error.value)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": {"b": [0, NaN]}}', r"a.b\[1\] is nan"),
        ('{"a": -Infinity}', "a is -inf"),
        ('{"a": 1e999}', "a is inf"),
        ('{"a": 1' + "0" * 30 + "}", "a is 1000"),
        ('{"a": 1' + "0" * 9000 + "}", "cannot be read: .*digits"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' stands twice"),
        ("[" * 200_000, "nested more than 64 deep"),
        ('{"a":' * 100 + "1" + "}" * 100, "nested more than 64 deep"),
        ("[1]", "holds a list, expected a dictionary"),
        ('{"a": 1', "cannot be read"),
        ("", "is an empty file"),
    ],
)
def test_json_that_is_refused(tmp_path, text, problem):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ConversionError, match=f"^{re.escape(str(path))}: .*{problem}"):
        read_json(path)


def test_text_that_is_none(tmp_path, monkeypatch):
    path = tmp_path / "merges.txt"
    path.write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(ConversionError, match=r"merges.txt: cannot be read: 'utf-8' codec"):
        read_text(path)
    path.write_text("four")
    assert read_text(path, 4) == "four"
    with pytest.raises(ConversionError, match=r"merges.txt: has 4 bytes, expected at most 3"):
        read_text(path, 3)
    monkeypatch.setattr(text_files, "MAX_YAML_BYTES", 3)
    with pytest.raises(ConversionError, match="has 4 bytes, expected at most 3"):
        read_yaml(path)
