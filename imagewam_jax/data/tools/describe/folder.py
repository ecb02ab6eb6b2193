"""Finds the version folder that a path leads to, opens it, and collects what its JSON files say."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import (
    META_FILE,
    DatasetIndex,
    default_index_dir,
    open_index,
)
from imagewam_jax.data.index.tfds_folder import TfdsFolder, read_tfds_folder
from imagewam_jax.errors import DataError

SHOWN = 12


class Opened(NamedTuple):
    """A dataset to describe.

    taken: how the version folder was found, "" if it was given.
    description: of the dataset, "" if it has none.
    notes: what the writer of the dataset says of its features, by key below `steps` or, of an
      episode's feature, from the record's root.
    """

    folder: TfdsFolder
    index: DatasetIndex
    taken: str
    description: str
    notes: dict[str, str]


def open_folder(
    directory: Path, index_directory: Path | None = None, workers: int | None = None
) -> Opened:
    """Opens a version folder, or the newest one below a folder of one dataset.

    Where there is no index it is built: one pass over all bytes, with a progress bar, which
    training needs too.

    index_directory: the folder of all indexes, `data.index_directory` of a config; by default the
      index is beside the shards.
    DataError: there is no dataset, or there are several; or its index cannot be made.
    """
    path, taken = find_version(Path(directory))
    folder = read_tfds_folder(path)
    index_dir = index_directory / folder.name if index_directory else default_index_dir(path)
    if (index_dir / META_FILE).exists():
        index = open_index(path, index_dir)
    else:
        index = build_index(path, index_dir, workers=workers)
    info, declared = _json(path / "dataset_info.json"), _json(path / "features.json")
    return Opened(folder, index, taken, info.get("description") or "", dict(_notes(declared)))


def find_version(directory: Path) -> tuple[Path, str]:
    """The TFDS version folder that `directory` is or leads to, and how it was chosen.

    Below `directory` there may be versions, builder configs or one dataset; of several versions the
    newest is taken, as TFDS does. DataError: there are several datasets or builder configs.
    """
    if _is_version(directory):
        return directory, ""
    below = [
        path.parent
        for depth in (1, 2, 3)
        for path in sorted(directory.glob("*/" * depth + "dataset_info.json"))
    ]
    holders = sorted({path.parent for path in below})
    if len(holders) > 1:
        names = [str(path) for path in holders[:SHOWN]]
        raise DataError(
            f"{directory}: holds {len(holders)} datasets or builder configs; name one of them: "
            + ", ".join(names)
            + (", ..." if len(holders) > SHOWN else "")
        )
    if not below:
        return directory, ""  # reading it says what is wrong
    versions = sorted(below, key=_version_order)
    names = ", ".join(path.name for path in versions)
    how = f"below {directory}" + (f", the newest of {names}" if len(versions) > 1 else "")
    return versions[-1], how


def _is_version(path: Path) -> bool:
    return any((path / name).is_file() for name in ("features.json", "dataset_info.json"))


def _version_order(path: Path) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", path.name)], path.name


def _json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def _notes(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, description) of all features of features.json that have a description."""
    if not isinstance(node, dict):
        return
    if key and node.get("description"):
        yield key.removeprefix("steps/"), str(node["description"])
    for name, child in (node.get("featuresDict") or {}).get("features", {}).items():
        yield from _notes(child, f"{key}/{name}" if key else name)
    yield from _notes((node.get("sequence") or {}).get("feature"), key)
