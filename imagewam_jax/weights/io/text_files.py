"""Reads the small text files beside weights: JSON, YAML, and tokenizers.

They come from anywhere, as weights do. Size, depth and the number of values are bounded before
anything of the size that a file only speaks of is made, and what two readers could take for
different values is an error: a key that stands twice, NaN, a number beyond 64 bits, a tag.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.stand_ins import refuse_stand_in

MAX_BYTES = 64 * 2**20  # Qwen3's tokenizer.json has 11 MB
MAX_YAML_BYTES = 4 * 2**20  # a config with thousands of folders has less than one
MAX_VALUES = 300_000  # statistics of 50 robots have fewer
MAX_DEPTH = 64
_NUMBERS = 2**63


def read_text(path: Path, limit: int = MAX_BYTES) -> str:
    """The text of a file in UTF-8. ConversionError: it is too large, or not such a text,
    but a pointer or a web page, say."""
    try:
        refuse_stand_in(path, text=False)
        if (size := path.stat().st_size) > limit:
            raise ConversionError(
                f"{path}: has {size:,} bytes, expected at most {limit:,} of such a file"
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConversionError(f"{path}: cannot be read: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file. ConversionError: there is none, or it is not safe to read."""
    text = read_text(path)
    try:
        read = json.loads(text, object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise ConversionError(f"{path}: is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:  # also of a number with thousands of digits
        raise ConversionError(f"{path}: cannot be read: {error}") from error
    return _checked(read, path)


def read_yaml(path: Path) -> dict[str, Any]:
    """The dictionary in a YAML file, with dates as text; numbers are those of OmegaConf, in which
    1e-4 is one. ConversionError: there is none, or it is not safe to read."""
    text = read_text(path, MAX_YAML_BYTES)
    try:
        _check_events(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise ValueError("it is empty")
            _check_nodes(node)
            read = loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ConversionError(f"{path}: is nested more than {MAX_DEPTH} deep") from None
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())  # of YAML in several lines
        raise ConversionError(f"{path}: cannot be read: {problem}") from error
    return _checked(read, path)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Reads numbers as OmegaConf does, dates as text, and no keys twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        keys = [key for key, _ in node.value if key.tag != _MERGE]
        _check_unique([self.construct_object(key, deep=True) for key in keys])
        return super().construct_mapping(node, deep=True)


_MERGE = "tag:yaml.org,2002:merge"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)  # fmt: skip
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null")}
_TAGS |= {f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "merge")}


def _check_events(text: str) -> None:
    """ValueError: it is too deep, too long or has a tag of its own. Nothing is made of it."""
    depth = 0
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        if number > MAX_VALUES:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag not in _TAGS:
            raise ValueError(f"it has the tag {tag}, expected plain values")


def _check_nodes(root: yaml.Node) -> None:
    """ValueError: with every alias written out, it would be endless, too deep or too large."""
    sizes: dict[int, tuple[int, int] | None] = {}  # None: the node is being counted

    def count(node: yaml.Node) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1, 0
        if id(node) in sizes:
            if sizes[id(node)] is None:
                raise ValueError("it has an alias of what the alias is in, which has no end")
            return sizes[id(node)]
        sizes[id(node)] = None
        below = [count(part) for part in _parts(node)]
        values = 1 + sum(size for size, _ in below)
        depth = 1 + max((deep for _, deep in below), default=0)
        if values > MAX_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        sizes[id(node)] = values, depth
        return values, depth

    count(root)


def _parts(node: yaml.Node) -> Iterator[yaml.Node]:
    for part in node.value:
        yield from part if isinstance(part, tuple) else (part,)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _check_unique([key for key, _ in pairs])
    return dict(pairs)


def _check_unique(keys: list[Any]) -> None:
    seen = set()
    for key in keys:
        if not isinstance(key, (str, int, float, bool, type(None))):
            raise ValueError(f"{key!r} is no key")
        if str(key) in seen:
            raise ValueError(f"the key {str(key)!r} stands twice in one section")
        seen.add(str(key))


def _checked(read: Any, path: Path) -> dict[str, Any]:
    """The contents of a file as JSON has them. ConversionError: they are no dictionary, too deep,
    or have a number that is none."""
    if not isinstance(read, dict):
        raise ConversionError(f"{path}: holds a {type(read).__name__}, expected a dictionary")
    left = MAX_VALUES

    def plain(value: Any, where: str, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise ConversionError(
                f"{path}: is nested more than {MAX_DEPTH} deep, or has more than "
                f"{MAX_VALUES:,} values"
            )
        if isinstance(value, dict):
            return {str(k): plain(v, f"{where}.{k}", depth + 1) for k, v in value.items()}
        if isinstance(value, list):
            return [plain(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value)]
        number = isinstance(value, (int, float))
        if number and not (math.isfinite(value) and -_NUMBERS <= value < _NUMBERS):
            raise ConversionError(f"{path}: {where[1:]} is {value!r}, expected a finite number")
        return value

    return plain(read, "", 0)
