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
from imagewam_jax.data.index.dataset_index import DatasetIndex, SplitIndex
from imagewam_jax.data.transforms import (
    EpisodeFeatures,
    find_filter,
    find_transform,
    spec_identity,
)
from imagewam_jax.data.transforms.language import NO_TEXT, step_texts
from imagewam_jax.errors import DataError
from imagewam_jax.files import (
    check_open_files,
    elsewhere,
    partial_path,
    space_advice,
    write_file_checksums,
)

CACHE_DIR = "standardized"
FORMAT_VERSION = 1


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
    not_finite: the rows of steps whose action or state has a NaN or an infinite number.
    """

    actions: Float32[np.ndarray, "frames a"]
    states: Float32[np.ndarray, "frames p"]
    episode_steps: Int32[np.ndarray, " episodes"]
    frames: Int64[np.ndarray, " frames"]
    can_start: Bool[np.ndarray, " frames"]
    text_ids: Int32[np.ndarray, "frames k"]
    not_finite: Int64[np.ndarray, " n"]


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
    spec says (a key is missing, a transform's result has other dimensions), or the result cannot be
    written.
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
            advice = elsewhere(error) or space_advice(error)
            raise DataError(f"{target}: could not be written: {error}{advice}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return _open(index, target, digest)


def standardized_digest(index: DatasetIndex, spec: DatasetSpec) -> str:
    """Sixteen hex digits over the indexed bytes and `spec_identity`."""
    content = [FORMAT_VERSION, index.checksum, spec_identity(spec)]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _write(index: DatasetIndex, spec: DatasetSpec, folder: Path, progress: bool) -> None:
    texts = {name: step_texts(index, split, spec) for name, split in index.splits.items()}
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
    not_finite = [np.empty(0, np.int64)]
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
        finite = np.isfinite(action[kept]).all(1) & np.isfinite(state[kept]).all(1)
        not_finite.append(start + np.flatnonzero(~finite))
        bar.update()
    for array in (actions, states, frames, can_start, lengths):
        array.flush()
    np.save(folder / "not_finite.npy", np.concatenate(not_finite))
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
        # NaN and infinite numbers go on: whoever selects episodes refuses or leaves them out.
        with np.errstate(invalid="ignore", over="ignore"):
            action, state = find_transform(spec.transform)(steps, spec)
            _check_shapes(action, state, spec, stop - start)
            can_start, kept = np.ones((2, len(action)), bool)
            for names, allowed in ((spec.filters, can_start), (spec.drop_filters, kept)):
                for name in names:
                    allowed &= find_filter(name)(steps, spec, action, state)
    except DataError as error:
        raise DataError(f"{spec.name}: {where}: {error}") from error
    return action, state, can_start, np.flatnonzero(kept)


def _check_shapes(action: np.ndarray, state: np.ndarray, spec: DatasetSpec, steps: int) -> None:
    for found, encoding in ((action, spec.action), (state, spec.state)):
        if found.ndim != 2 or found.shape[1] != len(encoding.dims) or len(found) > steps:
            raise DataError(
                f"transform {spec.transform!r} made {found.shape} of {encoding.name}, "
                f"expected at most {steps} steps of {len(encoding.dims)}"
            )
    if len(action) != len(state):
        raise DataError(f"{len(action)} actions and {len(state)} states")


def _global_rows(
    ids: Int32[np.ndarray, "frames k"], texts: tuple[str, ...], instructions: list[str]
) -> Int32[np.ndarray, "frames k"]:
    row = {text: number for number, text in enumerate(instructions)}
    return np.array([*(row[text] for text in texts), NO_TEXT], np.int32)[ids]


def _open(index: DatasetIndex, folder: Path, digest: str) -> StandardizedDataset:
    try:
        instructions = json.loads((folder / "instructions.json").read_text(encoding="utf-8"))
        splits = {name: _open_split(folder / name) for name in index.splits}
    except (OSError, ValueError) as error:
        check_open_files(error)
        raise DataError(f"{folder}: cannot be read ({error}); remove it to have it made") from error
    return StandardizedDataset(digest, tuple(instructions), splits)


def _open_split(folder: Path) -> StandardizedSplit:
    arrays = {}
    for field in dataclasses.fields(StandardizedSplit):
        file = folder / f"{field.name}.npy"
        # A version that refused numbers that are not finite wrote no list of them.
        none = field.name == "not_finite" and not file.exists()
        arrays[field.name] = np.empty(0, np.int64) if none else np.load(file, mmap_mode="r")
    if arrays["text_ids"].ndim != 2:  # as a version wrote tensors of texts, and could not use them
        raise ValueError(f"text_ids of {folder.name} are {arrays['text_ids'].shape}")
    return StandardizedSplit(**arrays)
