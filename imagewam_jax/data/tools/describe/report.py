"""The description of a dataset as text for people, and what to paste into a config."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from imagewam_jax.data.index.columns import Column, Ragged, Text
from imagewam_jax.data.index.dataset_index import DatasetIndex, SplitIndex
from imagewam_jax.data.registry import REGISTRY
from imagewam_jax.data.tools.describe.cameras import Pictures, all_pictures, guess_cameras
from imagewam_jax.data.tools.describe.folder import Opened, open_folder
from imagewam_jax.data.tools.describe.language import (
    Texts,
    all_texts,
    guess_language,
    is_instruction,
)
from imagewam_jax.data.tools.describe.numbers import guess_action_and_state, usable_numbers
from imagewam_jax.data.tools.describe.rate import control_rate
from imagewam_jax.data.tools.describe.row import Guesses, config_source
from imagewam_jax.storage.objects import AnyPath

SHOWN_TEXTS = 10
SHOWN_NUMBERS = 6
SHOWN_LETTERS = 60


def describe(
    directory: AnyPath | str,
    count_tokens: Callable[[Sequence[str]], int],
    *,
    index_directory: AnyPath | None = None,
    workers: int | None = None,
) -> str:
    """Describes any RLDS dataset, and suggests the fields of a config that train on it.

    count_tokens: the tokens of the longest of some instructions.
    index_directory, workers: see `open_folder`. DataError: the folder cannot be opened.
    """
    opened = open_folder(directory, index_directory, workers)
    pictures, texts = all_pictures(opened.index), all_texts(opened.index)
    lines = [
        *_head(opened),
        *_episodes(opened.index),
        *_keys(opened),
        *_cameras(pictures),
        *_instructions(texts),
        *_facts(opened),
        *_suggestion(opened, pictures, texts, count_tokens, index_directory),
    ]
    return "\n".join(lines)


def _head(opened: Opened) -> Iterator[str]:
    folder = opened.folder
    taken = f" ({opened.taken})" if opened.taken else ""
    yield f"{folder.path}{taken}"
    yield f"{folder.name} {folder.version}"
    if opened.description:
        yield f'"{" ".join(opened.description.split())}"'


def _episodes(index: DatasetIndex) -> Iterator[str]:
    yield from ("", "Episodes and steps")
    rows = [("split", "episodes", "steps", "shortest", "median", "longest", "without steps")]
    for name, split in index.splits.items():
        lengths = np.diff(split.episode_start)
        filled = lengths[lengths > 0] if (lengths > 0).any() else np.zeros(1, int)
        numbers = (len(lengths), lengths.sum(), filled.min(), int(np.median(filled)), filled.max())
        rows.append((name, *(f"{n:,}" for n in numbers), f"{(lengths == 0).sum():,}"))
    yield from _table(rows)


def _keys(opened: Opened) -> Iterator[str]:
    index, notes = opened.index, opened.notes
    split = max(index.splits.values(), key=lambda split: split.num_frames)
    rows = [(key, *_column(column)) for key, column in split.steps.items()]
    rows += [
        (key, str(list(image.shape)), f"{image.dtype} image", "see below")
        for key, image in split.images.items()
    ]
    yield from ("", "Keys of a step")
    yield from _table([("key", "shape", "dtype", "example"), *sorted(rows)])
    if split.episodes:
        rows = [(key, *_column(column)) for key, column in split.episodes.items()]
        yield from ("", "Keys of an episode")
        yield from _table([("key", "shape", "dtype", "example"), *sorted(rows)])
    if notes:
        yield from ("", "What the dataset says of its keys")
        yield from _table([(key, " ".join(note.split())) for key, note in sorted(notes.items())])
    if index.skipped:
        yield from ("", "Not read")
        yield from _table(sorted(index.skipped.items()))


def _column(column: Column) -> tuple[str, str, str]:
    """The shape of a row, its dtype, and the first row."""
    values = column.values if isinstance(column, Ragged) else column
    row = column[0:1]
    if isinstance(values, Text):
        shape, dtype = list(values.ids.shape[1:]), "text"
    else:
        inner = values[0:0]
        shape, dtype = list(inner.shape[1:]), str(inner.dtype)
    shape = ["any", *shape] if isinstance(column, Ragged) else shape
    items = np.ravel(row[0]).tolist() if len(row) else []
    shown = ", ".join(_value(item) for item in items[:SHOWN_NUMBERS])
    shown += ", ..." if len(items) > SHOWN_NUMBERS else ""
    return "[" + ", ".join(map(str, shape)) + "]", dtype, shown


def _value(value: object) -> str:
    if isinstance(value, bytes):
        return _quoted(value.decode(errors="replace"))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= SHOWN_LETTERS else text[: SHOWN_LETTERS - 3] + "...")


def _cameras(pictures: dict[str, Pictures]) -> Iterator[str]:
    yield from ("", "Pictures, in rows x columns" if pictures else "No pictures")
    yield from _table([(key, found.text()) for key, found in pictures.items()])


def _instructions(texts: dict[str, Texts]) -> Iterator[str]:
    yield from ("", "Texts" if texts else "No texts")
    for key, found in sorted(texts.items()):
        filled = {text: n for text, n in found.counts.items() if text.strip()}
        extra = f", {found.blank:,} of {found.rows:,} without one" if found.blank else ""
        extra += f", {found.undecodable} not UTF-8" if found.undecodable else ""
        yield f"  {key}: {found.where}, {len(filled):,} different{extra}"
        most = sorted(filled.items(), key=lambda item: -item[1])
        shown = SHOWN_TEXTS if is_instruction(key) else 2
        yield from (f"    {n:7,}  {_quoted(text)}" for text, n in most[:shown])
        if len(most) > shown:
            yield "        ..."


def _facts(opened: Opened) -> Iterator[str]:
    split = max(opened.index.splits.values(), key=lambda split: split.num_frames)
    hz, why = control_rate(opened)
    yield from ("", f"Control rate: {hz:g} steps per second ({why})")
    flags = [(key, _share(split, key)) for key in sorted({*split.steps, *split.episodes})]
    flags = [(key, share) for key, share in flags if share]
    if flags:
        yield from ("", "Flags")
        yield from _table(flags)


def _share(split: SplitIndex, key: str) -> str:
    """How often a flag is set; "" if the feature is none."""
    where, of = (split.steps, "steps") if key in split.steps else (split.episodes, "episodes")
    row = where[key][0:0]
    if row.dtype != bool or row.ndim != 1:
        return ""
    values = where[key][:]
    return f"set in {int(values.sum()):,} of {len(values):,} {of}"


def _suggestion(
    opened: Opened,
    pictures: dict[str, Pictures],
    texts: dict[str, Texts],
    count_tokens: Callable[[Sequence[str]], int],
    index_directory: AnyPath | None,
) -> Iterator[str]:
    index, name = opened.index, opened.folder.name
    split = max(index.splits.values(), key=lambda split: split.num_frames)
    action, state = guess_action_and_state(split)
    cameras = guess_cameras(pictures)
    yield ""
    if action is None or cameras is None:
        missing = "an action" if action is None else "a camera"
        yield f"No row can be suggested: nothing looks like {missing} among the numbers"
        yield f"{sorted(usable_numbers(split))} and the pictures {sorted(pictures)}."
        yield "docs/data.md says how a row and a transform of your own read what is there."
        return
    if name in REGISTRY:
        yield f"The registry has a row {name!r}, which somebody checked; without `data.rows` below"
        yield "it is taken, with its own cameras and widths (imagewam data list)."
    yield "To train on it, copy configs/quickstart.py and paste this above its `return config`."
    yield "Every guess has its reason: check it, then look at it with imagewam data show."
    yield ""
    guesses = Guesses(cameras, action, state, guess_language(texts), control_rate(opened))
    yield config_source(
        name, opened.folder.path, index, guesses, texts, count_tokens, index_directory
    )


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield ("  " + "  ".join(cells)).rstrip()
