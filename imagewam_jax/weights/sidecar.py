"""The files beside foreign weights: configs, normalization statistics, tokenizer files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.text_files import read_json, read_text, read_yaml
from imagewam_jax.weights.layouts.imagewam_settings import decides
from imagewam_jax.weights.references import resolved

CONFIGS = ("config.json", "train_config.yaml", "config.yaml")
STATISTICS_FILE = "dataset_stats.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


class Sidecar(NamedTuple):
    """The contents of the files beside one source; tokenizer files are texts by file name."""

    metadata: dict[str, Any]  # all configs merged, with their references filled in
    configs: tuple[Path, ...]  # the files that it was read from
    statistics: Mapping[str, Any] | None
    statistics_file: Path | None
    tokenizer: dict[str, str]


def read_sidecar(
    path: Path, *, with_statistics: bool = True, statistics: Path | None = None
) -> Sidecar:
    """Read the files in the folder of the weights and, for an official checkpoint inside its run
    (`checkpoints/weights/step_*.pt`), at the top of that run.

    statistics: the file with the statistics, if the user names it.
    """
    folders = [path if path.is_dir() else path.parent]
    if folders[0].name == "weights" and folders[0].parent.name == "checkpoints":
        folders.append(folders[0].parent.parent)
    metadata: dict[str, Any] = {}
    configs: tuple[Path, ...] = ()
    for file in (folder / name for folder in folders for name in CONFIGS):
        if _is_there(file):
            metadata = _merged(metadata, resolved(_read_config(file), file), file, configs)
            configs += (file,)
    if with_statistics and statistics is None:
        statistics = _statistics_file(folders, path.stem)
    contents = _read_config(statistics) if with_statistics and statistics else None
    return Sidecar(metadata, configs, contents, statistics, _tokenizer(folders[0]))


def _statistics_file(folders: Sequence[Path], stem: str) -> Path | None:
    """The file of statistics of the weights `stem`: under their name, its own, or with that of a
    release before it, such as libero_2cam224_dataset_stats.json. ConversionError: there are
    several."""
    for folder in folders:
        for name in (f"{stem}_{STATISTICS_FILE}", STATISTICS_FILE):
            if _is_there(folder / name):
                return folder / name
        found = sorted(folder.glob(f"*[_.-]{STATISTICS_FILE}"))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ConversionError(
                f"{folder}: several files of statistics, {names}: give the one of these weights as "
                "--statistics FILE"
            )
        if found:
            return found[0]
    return None


def _is_there(path: Path) -> bool:
    """Whether there is a file, or a link to one that is gone, which is an error when it is read."""
    return path.is_file() or path.is_symlink()


def _tokenizer(folder: Path) -> dict[str, str]:
    """The tokenizer's files, from the folder of the weights or, as diffusers stores them, from a
    folder `tokenizer` beside it."""
    for place in (folder, folder.parent / "tokenizer"):
        files = [place / name for name in TOKENIZER if _is_there(place / name)]
        if files:
            return {file.name: read_text(file) for file in files}
    return {}


def _read_config(path: Path) -> dict[str, Any]:
    return read_json(path) if path.suffix == ".json" else read_yaml(path)


def _merged(
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    path: Path,
    before: tuple[Path, ...],
    place: str = "",
) -> dict[str, Any]:
    """Two configs, of which the first is read where both have a key; `path` is the second's file,
    `before` those of the first. ConversionError: they contradict each other in a number."""
    merged = dict(first)
    for key, value in second.items():
        where = f"{place}.{key}" if place else key
        if key not in merged or merged[key] is None:
            merged[key] = value
        elif isinstance(merged[key], Mapping) and isinstance(value, Mapping):
            merged[key] = _merged(merged[key], value, path, before, where)
        elif value is not None and value != merged[key] and decides(where):
            raise ConversionError(
                f"{path}: {where} is {value!r}, and {merged[key]!r} in "
                f"{' or '.join(map(str, before))}: one of the files belongs to other weights"
            )
    return merged
