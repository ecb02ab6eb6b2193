"""What stands in files beside foreign weights, and what a user gives in their place."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from tqdm import tqdm

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.files import weight_files
from imagewam_jax.weights.overrides import SETTABLE

CONFIGS = ("config.json", "train_config.yaml", "config.yaml")
STATISTICS = "dataset_stats.json"
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


class Beside(NamedTuple):
    """The files beside one source: facts of its configs, statistics, tokenizer files."""

    facts: dict[str, Any]
    statistics: Mapping[str, Any] | None
    tokenizer: dict[str, str]


def read_beside(path: Path) -> Beside:
    """Looks in the folder of the weights, and at the top of the run that an official checkpoint
    lies in (`checkpoints/weights/step_*.pt`)."""
    folders = [path if path.is_dir() else path.parent]
    if folders[0].name == "weights" and folders[0].parent.name == "checkpoints":
        folders.append(folders[0].parent.parent)
    facts: dict[str, Any] = {}
    for folder in folders:
        for name in CONFIGS:
            if (folder / name).is_file():
                facts = _read_config(folder / name) | facts
    found = [folder / STATISTICS for folder in folders if (folder / STATISTICS).is_file()]
    statistics = _read_config(found[0]) if found else None
    return Beside(facts, statistics, _tokenizer(folders[0]))


def _tokenizer(folder: Path) -> dict[str, str]:
    """The tokenizer's files, from the folder of the weights, or where diffusers keeps it: in a
    folder of its own beside that."""
    for place in (folder, folder.parent / "tokenizer"):
        files = [place / name for name in TOKENIZER if (place / name).is_file()]
        if files:
            return {file.name: file.read_text(encoding="utf-8") for file in files}
    return {}


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE` as facts. ConversionError: there is no such name, or the value is not one."""
    given: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in SETTABLE:
            raise ConversionError(f"--set {setting}: expected NAME=VALUE with one of {[*SETTABLE]}")
        if name in given:
            raise ConversionError(f"--set {setting}: {name} is given twice")
        try:
            given[name] = SETTABLE[name].parse(text)
        except ValueError:
            raise ConversionError(
                f"--set {setting}: not a value of {name} ({SETTABLE[name].help})"
            ) from None
    return given


def checksums(path: Path) -> list[dict[str, Any]]:
    """Name, size and SHA-256 of every file that the weights are read from."""
    files = weight_files(path)
    total = sum(file.stat().st_size for file in files)
    found = []
    with tqdm(total=total, unit="B", unit_scale=True, desc=f"checksum of {path.name}") as bar:
        for file in files:
            digest = hashlib.sha256()
            with file.open("rb") as stream:
                while block := stream.read(2**24):
                    digest.update(block)
                    bar.update(len(block))
            found.append(
                {"file": file.name, "bytes": file.stat().st_size, "sha256": digest.hexdigest()}
            )
    return found


def _read_config(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        read = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        read = json.loads(json.dumps(read, default=str))  # YAML has dates, which JSON has not
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError) as error:
        raise ConversionError(f"{path}: cannot be read: {error}") from error
    if not isinstance(read, dict):
        raise ConversionError(f"{path}: holds a {type(read).__name__}, expected a dictionary")
    return read
