"""Tells which files of a folder are its weights.

A download or a run's folder can hold the same weights several times, weights of several models,
and other things. What is unambiguous is taken, and what was passed over is said; else the user is
asked.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.stand_ins import AGAIN, folder_kind, foreign_formats, refuse_stand_in

INDEX = ".safetensors.index.json"  # what the name of an index ends with
_SAFETENSORS, _BIN, _PICKLES = ".safetensors", ".bin", (".pt", ".pth", ".ckpt")
# Also diffusers' indexes of variants, such as model.safetensors.index.fp16.json.
_INDEX = re.compile(r".+\.(safetensors|bin)\.index(\.\w+)?\.json")
_SHARD = re.compile(r"(.+)-\d+-of-(\d+)(\..+)")
# What trainers keep in files of their own beside weights.
_TRAINING = re.compile(
    r"(optimizer|optim|scheduler|lr_scheduler|training_args|rng_state|random_states|scaler|sampler"
    r"|dl_state)(?![a-z])|.*optim_states"
)
_UNFINISHED = (".incomplete", ".part", ".crdownload", ".aria2")
_DEPTH = 3  # how far below a folder without weights they are looked for


class ShardIndex(NamedTuple):
    """The index of the shards of some weights: `files` has the file's name of each tensor."""

    path: Path
    files: dict[str, str]


class ChosenFiles(NamedTuple):
    """The files to read. `notes` say what was passed over."""

    paths: tuple[Path, ...]
    index: ShardIndex | None = None
    notes: tuple[str, ...] = ()


def indexed_files(path: Path) -> ChosenFiles | None:
    """The shards that a file is the index of; None if it is no index. ConversionError: it cannot be
    read, or a shard is missing."""
    if not _INDEX.fullmatch(path.name):
        return None
    index = _read_index(path)
    chosen = ChosenFiles(_shards(index), index)
    _check_whole(chosen)
    return chosen


def refuse_shard(path: Path) -> None:
    """ConversionError if a file is by its name one of several shards."""
    shard = _SHARD.fullmatch(path.name)
    if shard and int(shard[2]) > 1:
        raise ConversionError(
            f"{path}: is one of {int(shard[2])} shards: give their index, or their folder "
            f"{path.parent}"
        )


def chosen_files(folder: Path) -> ChosenFiles:
    """The files that hold the weights of a folder. safetensors files are preferred to .bin files,
    as transformers does, and an index whose shards are all gone is passed over if there is
    something else. ConversionError: there are none, or several sets of them, or a shard is gone."""
    if kind := folder_kind(folder):
        raise ConversionError(f"{folder}: is {kind}")
    safe, stale = _sets(folder, _SAFETENSORS)
    binary, stale_binary = _sets(folder, _BIN)
    pickles = [ChosenFiles((path,)) for path in _weights(folder) if path.suffix in _PICKLES]
    stale += stale_binary
    found = safe or binary
    if found and pickles:
        raise _ambiguous(folder, [*found, *pickles])
    found = found or pickles or stale[:1]
    if not found:
        raise ConversionError(f"{folder}: {_instead(folder)}")
    for files in found:
        _check_whole(files)
    notes = []
    if safe and binary:
        notes.append(f"not read: {_names(binary)}, since {_names(safe)} is there")
    if stale:
        named = ", ".join(files.index.path.name for files in stale)
        notes.append(f"not read: {named}, whose shards are not there, since {_names(found)} is")
    if below := _folders_below(folder, 1):
        notes.append(f"not read: the weights in {', '.join(below)}; each is a SOURCE of its own")
    if len(found) == 1:
        return found[0]._replace(notes=(f"read: {_names(found)}", *notes))
    if pickles or any(files.index for files in found):
        raise _ambiguous(folder, found)
    # Parts of a model can be in files of any names; whether they fit together, their tensors tell.
    return ChosenFiles(tuple(path for s in found for path in s.paths), None, tuple(notes))


def _sets(folder: Path, suffix: str) -> tuple[list[ChosenFiles], list[ChosenFiles]]:
    """The sets of weights in files of one kind: those of each index, shards, and single files; and
    those of indexes whose shards are all gone."""
    everything = {path.name: path for path in _weights(folder) if path.suffix == suffix}
    left, sets, stale = dict(everything), [], []
    for path in sorted(folder.iterdir()):
        if (match := _INDEX.fullmatch(path.name)) and f".{match[1]}" == suffix:
            index = _read_index(path)
            shards = _shards(index)
            is_there = any(shard.name in everything for shard in shards)
            (sets if is_there else stale).append(ChosenFiles(shards, index))
            for shard in shards:
                left.pop(shard.name, None)
    groups: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for name, path in left.items():
        shard = _SHARD.fullmatch(name)
        groups[shard.groups() if shard else (name,)].append(path)
    sets += [ChosenFiles(tuple(paths)) for paths in groups.values()]
    return sets, stale


def _shards(index: ShardIndex) -> tuple[Path, ...]:
    return tuple(index.path.parent / name for name in sorted(set(index.files.values())))


def _check_whole(files: ChosenFiles) -> None:
    """ConversionError: a shard is missing. A link to a shard that is gone is found on opening."""
    for path in files.paths:
        if not path.is_file() and not path.is_symlink():
            raise ConversionError(f"{path}: missing, but {files.index.path.name} names it; {AGAIN}")
    shard = _SHARD.fullmatch(files.paths[0].name)
    if shard and not files.index and len(files.paths) != int(shard[2]):
        raise ConversionError(
            f"{files.paths[0].parent}: {len(files.paths)} of the {int(shard[2])} shards "
            f"{shard[1]}-*{shard[3]} are there; {AGAIN}"
        )


def _weights(folder: Path) -> list[Path]:
    """The files of a folder that can be weights, dangling links among them."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in (_SAFETENSORS, _BIN, *_PICKLES)
        and not path.name.startswith(".")
        and not path.is_dir()
        and not _TRAINING.match(path.name)
    ]


def _ambiguous(folder: Path, found: Sequence[ChosenFiles]) -> ConversionError:
    named = "; ".join(_names([files]) for files in found[:6])
    more = "; ..." if len(found) > 6 else ""
    return ConversionError(
        f"{folder}: holds {len(found)} sets of weights ({named}{more}): give the file or the "
        "index to take"
    )


def _names(sets: Sequence[ChosenFiles]) -> str:
    more = [f" and {len(s.paths) - 1} more shards" if len(s.paths) > 1 else "" for s in sets]
    return ", ".join(s.paths[0].name + words for s, words in zip(sets, more, strict=True))


def _instead(folder: Path) -> str:
    """What there is in a folder without weights, and what to do."""
    if formats := foreign_formats(folder):
        return f"holds {formats}"
    if below := _folders_below(folder, _DEPTH):
        return f"holds no weights itself; give what you need of {', '.join(below)}"
    for path in sorted(folder.iterdir()):
        if path.is_dir() and (kind := folder_kind(path)):
            return f"holds no weights itself; {path.name} in it is {kind}"
    if unfinished := [p.name for p in folder.rglob("*") if p.suffix in _UNFINISHED]:
        return f"holds a download that did not finish ({unfinished[0]}): {AGAIN}"
    found = sorted(path.name for path in folder.iterdir())[:8]
    return f"no safetensors or PyTorch file of weights in it; found {found}"


def _folders_below(folder: Path, depth: int) -> list[str]:
    """The folders below one that have weights of their own."""

    def walk(inner: Path, left: int) -> Iterator[Path]:
        for path in sorted(inner.iterdir()) if left else ():
            if path.is_dir() and not path.name.startswith("."):
                if _weights(path):
                    yield path
                else:
                    yield from walk(path, left - 1)

    return [str(path) for path in walk(folder, depth)]


def _read_index(path: Path) -> ShardIndex:
    what = "not an index of files of weights"
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except OSError as error:
        raise ConversionError(f"{path}: cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        refuse_stand_in(path, text=False)
        raise ConversionError(f"{path}: {what}: {error!r}") from error
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise ConversionError(f"{path}: {what}: weight_map is not of names and files")
    return ShardIndex(path, files)
