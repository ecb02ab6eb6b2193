"""Finds the TFDS version folder `.../name[/config]/version` that a path leads to."""

import json
import re

from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import AnyPath

DESCRIPTIONS = ("features.json", "dataset_info.json")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def version_folder(directory: AnyPath, name: str, version: str = "", config: str = "") -> AnyPath:
    """The folder of a version of the dataset `name`.

    directory: that folder itself, that of a builder config, that of the dataset, or the one that
      holds the dataset under its name.
    version: by default the newest, in the order of TFDS: 10.0.0 comes after 9.0.0.
    config: the builder config; by default that of TFDS, or the only one.

    DataError says what was looked for and what is there.
    """
    if _is_version(directory):
        return _checked(directory, version, config)
    for folder in (directory / name, directory):
        if _is_version(folder):  # a dataset without a folder for its version
            return _checked(folder, version, config)
        if _versions(folder) or _configs(folder, config):
            return _of_dataset(folder, name, version, config)
    if not directory.is_dir():  # last, as it lists all objects below an address
        raise DataError(f"{directory}: no such folder, expected the dataset {name!r} there")
    raise DataError(f"{directory}: no dataset {name!r} there; {_content(directory, name)}")


def _is_version(folder: AnyPath) -> bool:
    return any((folder / file).is_file() for file in DESCRIPTIONS)


def _subfolders(folder: AnyPath) -> list[AnyPath]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] not in "._")


def _versions(folder: AnyPath) -> list[AnyPath]:
    """The versions in the folder of a dataset or of a builder config, the newest one last."""
    numbers = {path: _VERSION.fullmatch(path.name) for path in _subfolders(folder)}
    there = [path for path, match in numbers.items() if match and _is_version(path)]
    return sorted(there, key=lambda path: tuple(map(int, numbers[path].groups())))


def _configs(folder: AnyPath, named: str) -> list[AnyPath]:
    """The builder configs of a dataset: the one that is asked for, and others, which are told from
    datasets by what their versions say they are."""

    def is_config(path: AnyPath) -> bool:
        versions = _versions(path)
        if not versions or path.name == named:
            return bool(versions)
        info = _dataset_info(versions[-1])
        if "configName" in info:
            return info["configName"] == path.name
        return info.get("name") == folder.name

    return list(filter(is_config, _subfolders(folder)))


def _of_dataset(folder: AnyPath, name: str, version: str, config: str) -> AnyPath:
    configs = {path.name: path for path in _configs(folder, config)}
    if not config and not _versions(folder):
        config = _default_config(folder)
        if not config and len(configs) > 1:
            raise DataError(
                f"{folder}: {name!r} has the builder configs {sorted(configs)}; name one: "
                f'"config" in the entry of a mixture, or data.directory={str(folder / "CONFIG")!r}'
            )
        config = config or next(iter(configs))
    is_here = config == folder.name and _versions(folder)
    if config and config not in configs and not is_here:
        raise DataError(
            f"{folder}: no builder config {config!r} of {name!r} there; {_content(folder, name)}"
        )
    folder = configs.get(config, folder)
    versions = _versions(folder)
    if not version:
        return versions[-1]
    for path in versions:
        if path.name == version:
            return path
    raise DataError(f"{folder}: no version {version!r} of {name!r} there; {_content(folder, name)}")


def _default_config(folder: AnyPath) -> str:
    """The builder config that TFDS takes where none is named, "" where it takes none."""
    try:
        metadata = json.loads((folder / ".config" / "metadata.json").read_text())
    except (OSError, ValueError):
        return ""
    return str(metadata.get("default_config_name") or "") if isinstance(metadata, dict) else ""


def _checked(folder: AnyPath, version: str, config: str) -> AnyPath:
    """The folder, unless what it holds is another version or builder config than is asked for."""
    info = _dataset_info(folder)
    for what, asked, key in (("version", version, "version"), ("config", config, "configName")):
        if asked and info.get(key, asked) != asked:
            raise DataError(f"{folder}: its {what} is {info[key]!r}, not {asked!r}")
    return folder


def _dataset_info(folder: AnyPath) -> dict:
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _content(directory: AnyPath, name: str) -> str:
    """What is in a folder, and the folder that holds the dataset under another name."""
    folders = [path.name for path in _subfolders(directory)]
    shown = f"it holds {folders[:20]}{' and more' if len(folders) > 20 else ''}"
    for folder in _subfolders(directory):
        versions = [folder] if _is_version(folder) else _versions(folder)
        inside = _dataset_info(versions[-1]).get("name") if versions else None
        if inside == name and folder.name != name:
            return (
                f"{shown}, of which {folder.name!r} has the dataset {name!r} inside: rename that "
                f"folder, or name the dataset {folder.name!r} in the config, too, with its row "
                f"under that name (for one of the registry: {{'like': {name!r}}})"
            )
    return shown
