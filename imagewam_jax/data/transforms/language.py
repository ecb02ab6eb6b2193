"""Instructions of a dataset: text features of steps or episodes as rows of a table of texts."""

import itertools
import math
from typing import Any

import numpy as np
from jaxtyping import Int32

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.index.columns import Coded, Column, Dense, Ragged, Text
from imagewam_jax.data.index.dataset_index import DatasetIndex, SplitIndex
from imagewam_jax.errors import DataError

NO_TEXT = -1
ADVICE = "name other keys in the row's `language`, or none: language=()"


def step_texts(
    index: DatasetIndex, split: SplitIndex, spec: DatasetSpec
) -> tuple[Int32[np.ndarray, "frames k"], tuple[str, ...]]:
    """Each step's alternative instructions as rows of a table, then -1, and the table.

    A feature holds one text, or several in a tensor or a list, for each step or each episode.
    Several texts and several keys are alternatives. A text of white space is none. Without language
    all are "". DataError: a key is not there, is no text, or holds a text that is not UTF-8.
    """
    if not spec.language:
        return np.zeros((split.num_frames, 1), np.int32), ("",)
    rows: dict[str, int] = {}
    columns = []
    for key in spec.language:
        of_episode = key not in split.steps
        ids, texts = _column_texts(index, split, key, spec)
        table = [rows.setdefault(t, len(rows)) if t.strip() else NO_TEXT for t in texts]
        ids = _gaps_last(np.array([*table, NO_TEXT], np.int32)[ids])
        columns.append(ids[split.frame_episode] if of_episode else ids)
    return _gaps_last(np.concatenate(columns, 1)), tuple(rows)


def _gaps_last(ids: Int32[np.ndarray, "n k"]) -> Int32[np.ndarray, "n m"]:
    """The same alternatives in the same order without gaps; as wide as the row that has most."""
    ids = np.take_along_axis(ids, np.argsort(ids == NO_TEXT, 1, kind="stable"), 1)
    return ids[:, : max(1, int((ids != NO_TEXT).sum(1).max(initial=0)))]


def _column_texts(
    index: DatasetIndex, split: SplitIndex, key: str, spec: DatasetSpec
) -> tuple[Int32[np.ndarray, "rows k"], list[str]]:
    """The texts of each step or episode as rows of a table, then -1, and the table."""
    where = f"{index.name}: the row {spec.name!r} has its language in {key!r}"
    column = split.steps.get(key, split.episodes.get(key))
    if column is None:
        skipped = index.skipped.get(f"steps/{key}", index.skipped.get(key))
        why = f"which is not indexed: {skipped}" if skipped else "which is not there"
        raise DataError(f"{where}, {why}; texts are {_text_keys(split)}; {ADVICE}")
    ids, texts = text_rows(column)
    if ids is None:
        what = _described(column)
        raise DataError(
            f"{where}, which is {what}, expected text or integers that are its characters or its "
            f"bytes; texts are {_text_keys(split)}; {ADVICE}"
        )
    decoded = []
    for number, text in enumerate(texts):
        try:
            decoded.append(decoded_text(text))
        except (ValueError, OverflowError) as error:  # a UnicodeDecodeError is a ValueError
            row = int(np.argwhere(ids == number)[0, 0])
            frame = row if key in split.steps else int(split.episode_start[row])
            frame = min(frame, split.num_frames - 1)  # an episode without steps has none
            raise DataError(
                f"{where}, which is no UTF-8 text in {split.describe_frame(frame)}: "
                f"{_shortened(text)} ({error}); write it as UTF-8, or {ADVICE}"
            ) from error
    return ids, decoded


def text_rows(column: Column) -> tuple[Int32[np.ndarray, "rows k"] | None, Any]:
    """The texts of each row as rows of a table, then -1, and the table; None: it is no text.

    The table has bytes, or integers that are characters; `decoded_text` reads both.
    """
    return _padded(column) if isinstance(column, Ragged) else _fixed(column)


def decoded_text(stored: bytes | np.ndarray) -> str:
    """The text of an entry of a table of `text_rows`. ValueError, OverflowError: it is none."""
    return stored.decode() if isinstance(stored, bytes) else _text_of_row(stored)


def _fixed(column: Column) -> tuple[np.ndarray | None, Any]:
    """Rows of a table [n, k] and the table, of as many texts in each row; None: it is no text."""
    if isinstance(column, Text):
        return _flat_rows(column.ids), column.texts
    values = column.rows if isinstance(column, Coded) else column.values
    if values.dtype.kind not in "iu" or values.ndim != 2 or not values.shape[1]:
        return None, ()
    if isinstance(column, Coded):
        return np.asarray(column.ids)[:, None], list(values)
    table, ids = np.unique(values, axis=0, return_inverse=True)
    return ids.reshape(-1, 1).astype(np.int32), list(table)


def _padded(column: Ragged) -> tuple[np.ndarray | None, Any]:
    """Rows of a table [n, k] and the table, of lists of texts: shorter ones end in -1.

    A list of integers is one text, so that k is 1.
    """
    starts = np.asarray(column.row_start)
    if isinstance(column.values, Text):
        items = _flat_rows(column.values.ids)
        counts = np.diff(starts)
        shape = (len(counts), max(1, int(counts.max(initial=0))), items.shape[1])
        ids = np.full(shape, NO_TEXT, np.int32)
        there = np.arange(ids.shape[1]) < counts[:, None]
        ids[there] = items[starts[0] : starts[-1]]
        return _flat_rows(ids), column.values.texts
    values = column.values.values
    if values.dtype.kind not in "iu" or values.ndim != 1:
        return None, ()
    rows: dict[bytes, int] = {}
    lists = (np.asarray(values[a:b]) for a, b in itertools.pairwise(starts))
    ids = np.array([rows.setdefault(row.tobytes(), len(rows)) for row in lists], np.int32)
    return ids[:, None], [np.frombuffer(row, values.dtype) for row in rows]


def _flat_rows(ids: Int32[np.ndarray, "rows ..."]) -> Int32[np.ndarray, "rows k"]:
    """All texts of a row side by side, also where there are no rows."""
    return np.asarray(ids).reshape(len(ids), math.prod(ids.shape[1:]))


def _text_of_row(row: np.ndarray) -> str:
    return text_of_codes(row[None])[0].decode()


def text_of_codes(codes: np.ndarray) -> np.ndarray:
    """UTF-8 texts, an object array of bytes [n], from rows of integers [n, width] that end in 0.

    Integers of one byte are the bytes of a text in UTF-8; wider ones are its Unicode code points,
    as Language-Table stores its instructions, as int32[512]. ValueError: a number is no character.
    """
    texts = np.empty(len(codes), object)
    for number, row in enumerate(codes):
        length = int(np.argmax(row == 0)) if (row == 0).any() else len(row)
        if row.dtype.itemsize == 1:
            texts[number] = row[:length].tobytes()
            continue
        text = "".join(map(chr, row[:length].tolist()))
        if controls := {c for c in text if ord(c) < 32 and not c.isspace()}:
            raise ValueError(f"it has the control character {ord(controls.pop())}")
        texts[number] = text.encode()
    return texts


def _text_keys(split: SplitIndex) -> list[str]:
    return sorted(
        key
        for key, column in {**split.episodes, **split.steps}.items()
        if isinstance(column.values if isinstance(column, Ragged) else column, Text)
    )


def _described(column: Column) -> str:
    """The dtype and the shape of a row of a column of numbers."""
    values = column.values if isinstance(column, Ragged | Dense) else column.rows
    values = values.values if isinstance(values, Dense) else values
    shape = (["any"] if isinstance(column, Ragged) else []) + list(values.shape[1:])
    return f"{values.dtype}[{', '.join(map(str, shape))}]"


def _shortened(text: bytes | np.ndarray) -> str:
    shown = text if isinstance(text, bytes) else text.tolist()
    return repr(shown) if len(shown) <= 40 else f"{shown[:40]!r}..."
