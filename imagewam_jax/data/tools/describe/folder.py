"""Finds the version folder that a path leads to, opens it, and collects what its JSON files say."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import (
    META_FILE,
    DatasetIndex,
    default_index_dir,
    open_index,
)
from imagewam_jax.data.index.kept_index import index_here
from imagewam_jax.data.index.tfds_folder import TfdsFolder, read_tfds_folder
from imagewam_jax.data.index.version_folder import version_folder
from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import AnyPath, as_path

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
    directory: AnyPath | str, index_directory: AnyPath | None = None, workers: int | None = None
) -> Opened:
    """Opens a version folder, or the newest one below a folder of one dataset.

    Where there is no index it is built: one pass over all bytes, with a progress bar, which
    training needs too.

    index_directory: the folder of all indexes, `data.index_directory` of a config; by default the
      index is beside the shards.
    DataError: there is no dataset, or there are several; or its index cannot be made.
    """
    path, taken = find_version(as_path(directory))
    folder = read_tfds_folder(path)
    place = index_directory / folder.name if index_directory else default_index_dir(path)
    with index_here(place) as index_dir:
        if (index_dir / META_FILE).exists():
            index = open_index(path, index_dir)
        else:
            index = build_index(path, index_dir, workers=workers)
    info, declared = _json(path / "dataset_info.json"), _json(path / "features.json")
    return Opened(folder, index, taken, info.get("description") or "", dict(_notes(declared)))


def find_version(directory: AnyPath) -> tuple[AnyPath, str]:
    """The TFDS version folder that `directory` is or leads to, and how it was chosen.

    It may be the folder of a dataset, of a builder config, or one that holds one dataset; of
    several versions the newest is taken, as TFDS does. DataError: it leads to several datasets.
    """
    path = _version_below(directory)
    if path is None and directory.is_dir():
        folders = sorted(child for child in directory.iterdir() if child.is_dir())
        found = {child: version for child in folders if (version := _version_below(child))}
        if len(found) > 1:
            shown = ", ".join(map(str, list(found)[:SHOWN])) + ", ..." * (len(found) > SHOWN)
            raise DataError(f"{directory}: holds {len(found)} datasets; name one of them: {shown}")
        path = next(iter(found.values()), None)
    if path is None:
        path = version_folder(directory, directory.name)  # which says what is there
    if path == directory:
        return path, ""
    versions = sorted(p.name for p in path.parent.iterdir() if (p / "dataset_info.json").is_file())
    return path, f"below {directory}" + f", the newest of {versions}" * (len(versions) > 1)


def _version_below(directory: AnyPath) -> AnyPath | None:
    try:
        return version_folder(directory, directory.absolute().name)
    except DataError:
        return None


def _json(path: AnyPath) -> dict:
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
