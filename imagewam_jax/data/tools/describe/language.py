"""Finds the instructions of a dataset, and counts them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from imagewam_jax.data.index.columns import Coded, Column, Ragged, Text
from imagewam_jax.data.index.dataset_index import DatasetIndex, SplitIndex
from imagewam_jax.data.transforms.standardize import text_of_codes

_INSTRUCTION = re.compile(
    r"instruction|language|lang(_|$)|task|prompt|caption|annotation|command|goal|text"
)
_NO_INSTRUCTION = re.compile(
    r"path|file|(^|[_/])(id|uuid|name|date|time|url)([_/]|$)|embed|robot|user"
)


class Texts(NamedTuple):
    """The texts of one feature, over all splits.

    per: "step" or "episode". wordings: how many one step or episode has at most.
    counts: rows (steps or episodes) by text; a row of several wordings counts for each.
    rows: all rows. blank: rows without any text but white space. undecodable: texts that are not
      UTF-8.
    """

    key: str
    per: str
    wordings: int
    counts: dict[str, int]
    rows: int
    blank: int
    undecodable: int

    @property
    def where(self) -> str:
        several = f", up to {self.wordings} wordings" if self.wordings > 1 else ""
        return f"one per {self.per}{several}"


def all_texts(index: DatasetIndex) -> dict[str, Texts]:
    """Every feature of text, and codes of text, by key."""
    first = next(iter(index.splits.values()))
    found = {}
    for per, columns in (("step", first.steps), ("episode", first.episodes)):
        for key, column in columns.items():
            if _is_text(key, column):
                found[key] = _texts(index, key, per)
    return found


def guess_language(texts: Mapping[str, Texts]) -> tuple[tuple[str, ...], str]:
    """The keys of alternative instructions, and why them; () if there are none."""
    named = [key for key in texts if is_instruction(key)]
    likely = [
        key
        for key in named
        if not texts[key].undecodable and any(text.strip() for text in texts[key].counts)
    ]
    if not likely:
        broken = [key for key in named if texts[key].undecodable]
        why = f"{', '.join(map(repr, broken))}: not UTF-8, so it cannot be read"
        return (), why if broken else "no text looks like an instruction"
    best = min(likely, key=lambda key: (_rank(key), texts[key].per != "step", key))
    # `language_instruction_2` and others of its kind are alternatives.
    stem = re.sub(r"_?\d+$", "", best)
    keys = tuple(sorted(key for key in likely if re.sub(r"_?\d+$", "", key) == stem))
    others = [key for key in likely if key not in keys]
    why = f"the name says so; {texts[best].where}"
    return keys, why + (f"; left out: {', '.join(map(repr, others))}" if others else "")


def is_instruction(key: str) -> bool:
    """Whether the name of a text says that it tells a task."""
    name = key.lower()
    return bool(_INSTRUCTION.search(name)) and not _NO_INSTRUCTION.search(name)


def _rank(key: str) -> int:
    name = key.rpartition("/")[2].lower()
    order = ("language_instruction", "natural_language_instruction", "instruction")
    if name in order:
        return order.index(name)
    return len(order) + ("instruction" not in name) + ("lang" not in name)


def _is_text(key: str, column: Column) -> bool:
    values = column.values if isinstance(column, Ragged) else column
    if isinstance(values, Text):
        return True
    codes = isinstance(column, Coded) and column.rows.dtype.kind in "iu" and column.rows.ndim == 2
    return codes and is_instruction(key)


def _texts(index: DatasetIndex, key: str, per: str) -> Texts:
    counts: dict[str, int] = {}
    rows = blank = undecodable = 0
    wordings = 1
    for split in index.splits.values():
        column = (split.steps if per == "step" else split.episodes)[key]
        ids, texts = _ids(column)
        rows += len(column)
        lengths = np.diff(column.row_start) if isinstance(column, Ragged) else [ids[:1].size]
        wordings = max(wordings, int(np.max(lengths, initial=0)))
        undecodable += sum(_is_broken(text) for text in texts)
        blank += int((~_has_text(column)).sum())
        decoded = [text.decode(errors="replace") for text in texts]
        flat = ids.reshape(-1)
        for text, count in zip(decoded, np.bincount(flat, minlength=len(texts)), strict=True):
            counts[text] = counts.get(text, 0) + int(count)
    return Texts(key, per, wordings, counts, rows, blank, undecodable)


def _ids(column: Column) -> tuple[np.ndarray, list[bytes]]:
    """The row in a table of texts of each item, and the table."""
    values = column.values if isinstance(column, Ragged) else column
    if isinstance(values, Text):
        return np.asarray(values.ids), list(values.texts)
    try:
        return np.asarray(values.ids), list(text_of_codes(values.rows))
    except (ValueError, OverflowError):  # numbers that are no code points
        return np.asarray(values.ids), [b"\xff"] * len(values.rows)


def _is_broken(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return True
    return False


def _has_text(column: Column) -> np.ndarray:
    """Which rows have a text that is more than white space, bool [rows]."""
    ids, texts = _ids(column)
    filled = np.array([bool(text.decode(errors="replace").strip()) for text in texts], bool)
    if not isinstance(column, Ragged):
        return filled[ids].reshape(len(column), -1).any(1)
    row = np.zeros(len(column), bool)
    row[np.repeat(np.arange(len(column)), np.diff(column.row_start))[filled[ids]]] = True
    return row


def unlabelled_steps(split: SplitIndex, keys: tuple[str, ...]) -> int:
    """How many steps of a split have no instruction under any of the keys."""
    labelled = np.zeros(split.num_frames, bool)
    for key in keys:
        if key in split.steps:
            labelled |= _has_text(split.steps[key])
        else:
            labelled |= _has_text(split.episodes[key])[split.frame_episode]
    return int((~labelled).sum())
