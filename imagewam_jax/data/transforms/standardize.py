"""Standardized episodes: a dataset's actions, states and instructions as its spec defines them.

The transform and the filters of the dataset spec run once per episode. The result is cached beside
the index, in `standardized/<dataset>-<digest>`. The digest covers the indexed bytes and everything
that decides the result, so that the cache of a changed transform is never read.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64
from tqdm import tqdm

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.index.columns import Coded, Column, Text
from imagewam_jax.data.index.dataset_index import DatasetIndex, SplitIndex
from imagewam_jax.data.transforms import (
    EpisodeFeatures,
    find_filter,
    find_transform,
    spec_identity,
)
from imagewam_jax.errors import DataError
from imagewam_jax.files import check_open_files, elsewhere, partial_path, write_file_checksums

CACHE_DIR = "standardized"
FORMAT_VERSION = 1
NO_TEXT = -1


@dataclasses.dataclass(frozen=True)
class StandardizedSplit:
    """The standardized episodes of one split.

    Arrays have a row per frame of the index. An episode's steps begin at the row of its first
    frame and are contiguous; steps that the spec drops are left out, and the rows that become free
    at the end of the episode have no meaning.

    episode_steps: the number of steps of each episode.
    frames: the frame of the index that each step was made of.
    can_start: whether a sample may start at a step; False behind an episode's last step.
    text_ids: per step, rows of `instructions` that are alternative wordings, then -1.
    """

    actions: Float32[np.ndarray, "frames a"]
    states: Float32[np.ndarray, "frames p"]
    episode_steps: Int32[np.ndarray, " episodes"]
    frames: Int64[np.ndarray, " frames"]
    can_start: Bool[np.ndarray, " frames"]
    text_ids: Int32[np.ndarray, "frames k"]


@dataclasses.dataclass(frozen=True)
class StandardizedDataset:
    """The standardized splits of a dataset, and the distinct instructions of all, sorted."""

    digest: str
    instructions: tuple[str, ...]
    splits: Mapping[str, StandardizedSplit]


def standardize(
    index: DatasetIndex, spec: DatasetSpec, folder: Path, *, progress: bool = True
) -> StandardizedDataset:
    """Opens the standardized episodes of an indexed dataset, and makes them if they are not there.

    They are cached below `folder`, the folder of the index. DataError: the dataset is not what its
    spec says (a key is missing, a transform's result has other dimensions or holds a number that is
    not finite), or the result cannot be written.
    """
    digest = standardized_digest(index, spec)
    target = folder / CACHE_DIR / f"{spec.name}-{digest}"
    if not target.is_dir():
        partial = partial_path(target)
        try:
            partial.mkdir(parents=True)
            _write(index, spec, partial, progress)
            write_file_checksums(partial)
            # Where two processes make it, the second finds the equal result of the first.
            with contextlib.suppress(OSError):
                os.rename(partial, target)
        except OSError as error:
            raise DataError(f"{target}: could not be written: {error}{elsewhere(error)}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _open(index, target, digest)


def standardized_digest(index: DatasetIndex, spec: DatasetSpec) -> str:
    """Sixteen hex digits over the indexed bytes and `spec_identity`."""
    content = [FORMAT_VERSION, index.checksum, spec_identity(spec)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _write(index: DatasetIndex, spec: DatasetSpec, folder: Path, progress: bool) -> None:
    texts = {name: _texts(index, split, spec) for name, split in index.splits.items()}
    instructions = sorted({text for ids_texts in texts.values() for text in ids_texts[1]})
    total = sum(split.num_episodes for split in index.splits.values())
    bar = tqdm(total=total, desc=f"standardizing {spec.name}", disable=not progress)
    with bar:
        for name, split in index.splits.items():
            (folder / name).mkdir()
            frames = _write_split(split, spec, folder / name, bar)
            text_ids = _global_rows(*texts[name], instructions)
            np.save(folder / name / "text_ids.npy", text_ids[frames])
    (folder / "instructions.json").write_text(json.dumps(instructions), encoding="utf-8")


def _write_split(
    split: SplitIndex, spec: DatasetSpec, folder: Path, bar: tqdm
) -> Int64[np.ndarray, " frames"]:
    """Writes all columns of a split but its instructions; returns the column `frames`."""

    def column(name: str, dtype: type, *shape: int) -> np.ndarray:
        file = folder / f"{name}.npy"
        array = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
        # On a full disk a write through the map would kill the process; this raises an error.
        with open(file, "r+b") as there:
            os.posix_fallocate(there.fileno(), 0, max(1, file.stat().st_size))
        return array

    count = split.num_frames
    actions = column("actions", np.float32, count, len(spec.action.dims))
    states = column("states", np.float32, count, len(spec.state.dims))
    frames = column("frames", np.int64, count)
    can_start = column("can_start", np.bool_, count)
    lengths = column("episode_steps", np.int32, split.num_episodes)
    for episode in range(split.num_episodes):
        start = int(split.episode_start[episode])
        if start == split.episode_start[episode + 1]:
            lengths[episode] = 0
            bar.update()
            continue
        action, state, starts, kept = _episode(split, spec, episode)
        end = start + len(kept)
        actions[start:end], states[start:end] = action[kept], state[kept]
        can_start[start:end], frames[start:end] = starts[kept], start + kept
        lengths[episode] = len(kept)
        bar.update()
    for array in (actions, states, frames, can_start, lengths):
        array.flush()
    return frames


def _episode(
    split: SplitIndex, spec: DatasetSpec, episode: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Actions, states and `can_start` [t] of one episode, and the numbers of the steps that are not
    dropped. DataError names the episode."""
    start, stop = split.episode_start[episode : episode + 2].tolist()
    where = split.describe_frame(start)
    steps = EpisodeFeatures(split.steps, split.episodes, slice(start, stop), episode, where)
    try:
        action, state = find_transform(spec.transform)(steps, spec)
        for found, encoding in ((action, spec.action), (state, spec.state)):
            if found.ndim != 2 or found.shape[1] != len(encoding.dims) or len(found) > stop - start:
                raise DataError(
                    f"transform {spec.transform!r} made {found.shape} of {encoding.name}, "
                    f"expected at most {stop - start} steps of {len(encoding.dims)}"
                )
            bad = np.flatnonzero(~np.isfinite(found).all(1))
            if len(bad):
                raise DataError(
                    f"{encoding.name} at step {bad[0]} is not finite, {found[bad[0]].tolist()} "
                    f"({len(bad)} such steps in this episode)"
                )
        if len(action) != len(state):
            raise DataError(f"{len(action)} actions and {len(state)} states")
        can_start, kept = np.ones((2, len(action)), bool)
        for names, allowed in ((spec.filters, can_start), (spec.drop_filters, kept)):
            for name in names:
                allowed &= find_filter(name)(steps, spec, action, state)
    except DataError as error:
        raise DataError(f"{spec.name}: {where}: {error}") from error
    return action, state, can_start, np.flatnonzero(kept)


def _texts(
    index: DatasetIndex, split: SplitIndex, spec: DatasetSpec
) -> tuple[Int32[np.ndarray, "frames k"], tuple[str, ...]]:
    """Each step's instructions as rows of a table, and the table. Without language all are ""."""
    if not spec.language:
        return np.zeros((split.num_frames, 1), np.int32), ("",)
    rows: dict[str, int] = {}
    columns = []
    for key in spec.language:
        ids, texts = _decoded(index, split, key, spec)
        # A text of white space counts as no instruction.
        table = [rows.setdefault(t, len(rows)) if t.strip() else NO_TEXT for t in texts]
        columns.append(np.array([*table, NO_TEXT], np.int32)[ids])
    ids = np.stack(columns, 1)
    # Instructions come first, gaps last.
    return np.take_along_axis(ids, np.argsort(ids == NO_TEXT, 1, kind="stable"), 1), tuple(rows)


def text_of_codes(codes: Int32[np.ndarray, "n width"]) -> np.ndarray:
    """UTF-8 texts, an object array of bytes [n], from rows of Unicode code points that end in 0.

    Language-Table stores its instructions so, as int32[512].
    """
    texts = np.empty(len(codes), object)
    for number, row in enumerate(codes):
        length = int(np.argmax(row == 0)) if (row == 0).any() else len(row)
        texts[number] = "".join(map(chr, row[:length].tolist())).encode()
    return texts


def _decoded(
    index: DatasetIndex, split: SplitIndex, key: str, spec: DatasetSpec
) -> tuple[Int32[np.ndarray, " frames"], list[str]]:
    """The text of each step as a row of a table, and the table, from a step or episode feature."""
    column: Column | None = split.steps.get(key)
    of_frame: np.ndarray | slice = slice(None)
    if column is None:
        column, of_frame = split.episodes.get(key), split.frame_episode
    if column is None:
        known = [k for k, c in {**split.steps, **split.episodes}.items() if isinstance(c, Text)]
        raise DataError(
            f"{index.name}: the spec {spec.name!r} has its language in {key!r}, which is not "
            f"there; texts are {sorted(known)}"
        )
    try:
        if isinstance(column, Text):
            return column.ids[of_frame], [text.decode() for text in column.texts]
        if not isinstance(column, Coded) or column.rows.dtype.kind not in "iu":
            raise DataError(f"{index.name}: {key!r} is neither text nor codes of text")
        return column.ids[of_frame], [text.decode() for text in text_of_codes(column.rows)]
    except UnicodeDecodeError as error:
        raise DataError(f"{index.name}: an instruction in {key!r} is not UTF-8: {error}") from error


def _global_rows(
    ids: Int32[np.ndarray, "frames k"], texts: tuple[str, ...], instructions: list[str]
) -> Int32[np.ndarray, "frames k"]:
    row = {text: number for number, text in enumerate(instructions)}
    return np.array([*(row[text] for text in texts), NO_TEXT], np.int32)[ids]


def _open(index: DatasetIndex, folder: Path, digest: str) -> StandardizedDataset:
    try:
        instructions = json.loads((folder / "instructions.json").read_text(encoding="utf-8"))
        splits = {
            name: StandardizedSplit(
                **{
                    field.name: np.load(folder / name / f"{field.name}.npy", mmap_mode="r")
                    for field in dataclasses.fields(StandardizedSplit)
                }
            )
            for name in index.splits
        }
    except (OSError, ValueError) as error:
        check_open_files(error)
        raise DataError(f"{folder}: cannot be read ({error}); remove it to have it made") from error
    return StandardizedDataset(digest, tuple(instructions), splits)
