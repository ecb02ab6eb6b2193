"""Finds the instructions of a dataset, and counts them."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from imagewam_jax.data.index.columns import Column, Ragged, Text
from imagewam_jax.data.index.dataset_index import DatasetIndex, SplitIndex
from imagewam_jax.data.transforms.language import NO_TEXT, decoded_text, text_rows

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
    return isinstance(values, Text) or (is_instruction(key) and text_rows(column)[0] is not None)


def _texts(index: DatasetIndex, key: str, per: str) -> Texts:
    counts: dict[str, int] = {}
    rows = blank = undecodable = 0
    wordings = 1
    for split in index.splits.values():
        column = (split.steps if per == "step" else split.episodes)[key]
        ids, stored = text_rows(column)
        texts = [_decoded(text) for text in stored]
        rows += len(ids)
        wordings = max(wordings, ids.shape[1])
        blank += int((~_has_text(column)).sum())
        undecodable += texts.count(None)
        number = np.bincount(ids[ids != NO_TEXT], minlength=len(texts))
        for text, stored_text, count in zip(texts, stored, number, strict=True):
            shown = repr(stored_text) if text is None else text
            counts[shown] = counts.get(shown, 0) + int(count)
    return Texts(key, per, wordings, counts, rows, blank, undecodable)


def _decoded(stored: bytes | np.ndarray) -> str | None:
    try:
        return decoded_text(stored)
    except (ValueError, OverflowError):
        return None


def _has_text(column: Column) -> np.ndarray:
    """Which rows have a text that is more than white space, bool [rows]."""
    ids, stored = text_rows(column)
    texts = [_decoded(text) for text in stored]
    filled = [text is None or bool(text.strip()) for text in texts]
    return np.array([*filled, False], bool)[ids].any(1)


def unlabelled_steps(split: SplitIndex, keys: tuple[str, ...]) -> int:
    """How many steps of a split have no instruction under any of the keys."""
    labelled = np.zeros(split.num_frames, bool)
    for key in keys:
        if key in split.steps:
            labelled |= _has_text(split.steps[key])
        else:
            labelled |= _has_text(split.episodes[key])[split.frame_episode]
    return int((~labelled).sum())
