"""Episodes of splits in the notation of TFDS, such as "train[:90%]+val".

The rules are those of `tfds.core.ReadInstruction`, which the tests compare with; training does not
need TFDS to be installed.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from imagewam_jax.data.index.columns import ImageColumn
from imagewam_jax.data.index.dataset_index import DatasetIndex, SplitIndex
from imagewam_jax.data.transforms.language import NO_TEXT
from imagewam_jax.data.transforms.standardize import StandardizedDataset, StandardizedSplit
from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import AnyPath

_TERM = re.compile(r"(?P<name>[\w-]+)(?:\[(?P<selector>[^\[\]]*)\])?")
_BOUND = re.compile(r"(?P<value>-?\d[\d_]*(?:\.\d*)?)(?P<unit>%|shard)?")
_EXAMPLES = "expected such as 'train', 'train[:95%]', 'train[10:20]', 'train[-10%:]+val', 'all'"


class Term(NamedTuple):
    """One summand of a split: a name and a range of it.

    start, stop: None for the split's own end; below 0 they count from the end.
    unit: "" for episodes, "%" or "shard".
    """

    name: str
    start: float | int | None = None
    stop: float | int | None = None
    unit: str = ""


class Selection(NamedTuple):
    """The episodes that a split such as "train[:90%]+val" selects.

    split, standardized: those of the named split; where there are several names, all of them end
      to end.
    episodes: the numbers of the selected episodes in `split`, ascending.
    """

    split: SplitIndex
    standardized: StandardizedSplit
    episodes: Int64[np.ndarray, " episodes"]


def select_episodes(text: str, index: DatasetIndex, standardized: StandardizedDataset) -> Selection:
    """The episodes of a split in the notation of TFDS.

    Percentages are rounded to the closest number of episodes. DataError: the text is none, names a
    split that the dataset does not have, reaches beyond its episodes, selects none or one twice.
    """
    terms = parse_split(text)
    if terms == (Term("all"),):
        terms = tuple(Term(name) for name in index.splits)
    there = {name: split.num_episodes for name, split in index.splits.items()}
    if unknown := [term.name for term in terms if term.name not in there]:
        raise DataError(
            f"{index.name} has no split {unknown[0]!r}; its splits and their episodes are {there}"
        )
    names = [name for name in index.splits if name in {term.name for term in terms}]
    first = dict(zip(names, np.cumsum([0, *(there[name] for name in names)]), strict=False))
    numbers = []
    for term in terms:
        start, stop = _episodes(term, text, index.splits[term.name], index.name)
        numbers.append(first[term.name] + np.arange(start, stop))
    episodes = np.sort(np.concatenate(numbers))
    if not len(episodes):
        raise DataError(f"{index.name}: {text!r} has no episodes; its splits have {there}")
    if (twice := (np.diff(episodes) == 0).sum()) > 0:
        raise DataError(f"{index.name}: {text!r} selects {twice} episodes more than once")
    if len(names) == 1:
        return Selection(index.splits[names[0]], standardized.splits[names[0]], episodes)
    return Selection(
        _joined_index([index.splits[name] for name in names]),
        _joined_standardized([standardized.splits[name] for name in names]),
        episodes,
    )


def parse_split(text: str) -> tuple[Term, ...]:
    """Parses a sum of splits, each whole or with a range. DataError: the text has another form."""
    return tuple(_term(part, text) for part in re.split(r"\s*\+\s*", text.strip()))


def _term(part: str, text: str) -> Term:
    match = _TERM.fullmatch(part)
    if match is None:
        raise DataError(f"split {text!r}; {_EXAMPLES}")
    name, selector = match["name"], match["selector"]
    if selector is None:
        return Term(name)
    if name == "all":
        raise DataError(f"split {text!r}: 'all' takes no range; give one to each split by its name")
    bounds = [_BOUND.fullmatch(bound) for bound in selector.split(":")]
    filled = [bound for bound in selector.split(":") if bound]
    if len(bounds) > 2 or sum(bound is not None for bound in bounds) != len(filled):
        raise DataError(f"split {text!r}; {_EXAMPLES}")
    units = {bound["unit"] or "" for bound in bounds if bound}
    if len(units) > 1:
        raise DataError(f"split {text!r}: {part!r} has bounds of two units; give both in one")
    unit = units.pop() if units else ""
    values = [_number(bound["value"], unit, text) if bound else None for bound in bounds]
    if len(values) == 2:
        return Term(name, *values, unit)
    if unit != "shard" or values[0] is None:
        raise DataError(f"split {text!r}: {part!r} is no range; {_EXAMPLES}")
    return Term(name, values[0], values[0] + 1, unit)


def _number(value: str, unit: str, text: str) -> float | int:
    if unit == "%":
        if abs(float(value)) > 100:
            raise DataError(f"split {text!r}: {value}% is not within -100% and 100%")
        return float(value)
    if "." in value:
        raise DataError(f"split {text!r}: {value} is no whole number")
    return int(value)


def _episodes(term: Term, text: str, split: SplitIndex, dataset: str) -> tuple[int, int]:
    """The first episode of a term, and one behind its last; not below the first."""
    count, (start, stop) = split.num_episodes, (term.start, term.stop)
    if term.unit == "%":
        start = 0 if start is None else round(start * count / 100)
        stop = count if stop is None else round(stop * count / 100)
    elif term.unit == "shard":
        lengths = np.bincount(split.episode_shard, minlength=len(split.shards)).tolist()
        if stop is not None and stop <= 0:
            stop += len(lengths)
        start = 0 if start is None else sum(lengths[:start])
        stop = count if stop is None else sum(lengths[:stop])
    else:
        start, stop = start or 0, count if stop is None else stop
    if max(abs(start), abs(stop)) > count:
        raise DataError(f"{dataset}: {text!r} reaches beyond the {count} episodes of {term.name!r}")
    start, stop = (bound + count if bound < 0 else bound for bound in (start, stop))
    return start, max(start, stop)


@dataclasses.dataclass(frozen=True, eq=False)
class _JoinedSplit(SplitIndex):
    """Several splits end to end, which describes frames by the split that they are of."""

    parts: tuple[SplitIndex, ...] = ()

    def describe_frame(self, frame: int) -> str:
        for part in self.parts:
            if frame < part.num_frames:
                return part.describe_frame(frame)
            frame -= part.num_frames
        raise IndexError(frame)


def _joined_index(splits: Sequence[SplitIndex]) -> SplitIndex:
    """Several splits end to end, in memory; without the columns of steps and of episodes."""
    frames, episodes, shards = (
        np.cumsum([0, *map(count, splits)])[:-1]
        for count in (lambda s: s.num_frames, lambda s: s.num_episodes, lambda s: len(s.shards))
    )

    def joined(name: str, add: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        parts = [getattr(split, name) for split in splits]
        if add is not None:
            parts = [part + part.dtype.type(more) for part, more in zip(parts, add, strict=True)]
        return np.concatenate(parts)

    starts = [split.episode_start[:-1] + first for split, first in zip(splits, frames, strict=True)]
    total = sum(split.num_frames for split in splits)
    as_first = {f.name: getattr(splits[0], f.name) for f in dataclasses.fields(SplitIndex)}
    images = {key: _joined_images([s.images[key] for s in splits]) for key in splits[0].images}
    changed = {
        "name": "+".join(split.name for split in splits),
        "shards": tuple(shard for split in splits for shard in split.shards),
        "generations": tuple(g for split in splits for g in split.generations),
        "episode_start": np.concatenate([*starts, [total]]).astype(np.int64),
        "episode_shard": joined("episode_shard", shards),
        "record_offset": joined("record_offset"),
        "record_length": joined("record_length"),
        "frame_episode": joined("frame_episode", episodes),
        "steps": {},
        "episodes": {},
        "images": images,
        "parts": tuple(splits),
    }
    return _JoinedSplit(**as_first | changed)


def _joined_images(columns: Sequence[ImageColumn]) -> ImageColumn:
    arrays = {
        name: np.concatenate([getattr(column, name) for column in columns])
        for name in ("offset", "length", "crc32c", "size_ehw")
    }
    return dataclasses.replace(columns[0], **arrays)


def _joined_standardized(splits: Sequence[StandardizedSplit]) -> StandardizedSplit:
    width = max(split.text_ids.shape[1] for split in splits)
    first = np.cumsum([0, *(len(split.frames) for split in splits)])[:-1].tolist()

    def joined(name: str) -> np.ndarray:
        parts = [getattr(split, name) for split in splits]
        if name in ("frames", "not_finite"):
            parts = [part + more for part, more in zip(parts, first, strict=True)]
        elif name == "text_ids":  # splits differ in their number of alternatives
            ends = [((0, 0), (0, width - part.shape[1])) for part in parts]
            parts = [
                np.pad(part, end, constant_values=NO_TEXT)
                for part, end in zip(parts, ends, strict=True)
            ]
        return np.concatenate(parts)

    fields = dataclasses.fields(StandardizedSplit)
    return StandardizedSplit(**{field.name: joined(field.name) for field in fields})


def selected_rows(
    selection: Selection, rows: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " selected"]:
    """Leave out the rows of a standardized split whose episodes are not selected."""
    return rows[np.isin(selection.split.frame_episode[rows], selection.episodes)]


def selected_steps(selection: Selection) -> Int64[np.ndarray, " steps"]:
    """The rows of all steps of the selected episodes whose numbers are finite."""
    split, standardized = selection.split, selection.standardized
    chosen = np.zeros(split.num_episodes, bool)
    chosen[selection.episodes] = True
    step = np.arange(split.num_frames) - split.episode_start[split.frame_episode]
    there = chosen[split.frame_episode] & (step < standardized.episode_steps[split.frame_episode])
    there[standardized.not_finite] = False
    return np.flatnonzero(there)


def selected_ranges(selection: Selection) -> list[tuple[int, int]]:
    """The selected episodes as ranges: (the first, one behind the last)."""
    numbers = selection.episodes
    gaps = np.flatnonzero(np.diff(numbers) > 1)
    firsts, lasts = numbers[[0, *(gaps + 1)]], numbers[[*gaps, len(numbers) - 1]]
    return [(int(a), int(b) + 1) for a, b in zip(firsts, lasts, strict=True)]


def shared_episodes(one: Selection, other: Selection) -> int:
    """How many episodes two selections of a dataset have in common."""
    known: dict[AnyPath, int] = {}
    records = []  # of each episode: its file, and which of the file's records it is
    for split, _, episodes in (one, other):
        files = np.array([known.setdefault(path, len(known)) for path in split.shards], np.int64)
        shard = split.episode_shard[episodes]
        place = episodes - np.searchsorted(split.episode_shard, shard)
        records.append(files[shard] << 32 | place)
    return len(np.intersect1d(*records))
