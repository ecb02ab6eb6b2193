"""Fills in the references of a config, `${a.b}`, which Hydra leaves in the files that it writes.

A reference to another place of the same file has one meaning. A resolver, `${oc.env:HOME}`, would
run code or read what the machine of the training had; it is left as it stands, and so is a
reference to nothing. Whoever needs the value finds out by `unresolved`.
"""

import re
from pathlib import Path
from typing import Any

from imagewam_jax.errors import ConversionError

_REFERENCE = re.compile(r"(?<!\\)\$\{(\.*)([^${}:]*)\}")
MISSING = "???"  # stands for a value that is still to be given
MAX_TEXT = 10_000  # characters of a text with references
MAX_VALUES = 100_000  # of all that references stand for
MAX_DEPTH = 32  # references that lead to references


def resolved(config: dict[str, Any], file: Path) -> dict[str, Any]:
    """The config with every plain reference replaced by what stands there.

    ConversionError: references lead back to themselves, or stand for too much.
    """
    return _Resolver(config, file).value(config, ())


def unresolved(value: Any) -> bool:
    """Whether a value is text with a reference that could not be filled in, or is still missing."""
    return isinstance(value, str) and (value == MISSING or "${" in value)


class _Resolver:
    def __init__(self, config: dict[str, Any], file: Path):
        self._config, self._file = config, file
        self._following: list[tuple[str, ...]] = []  # the places that references led to
        self._left = MAX_VALUES

    def value(self, value: Any, place: tuple[str, ...]) -> Any:
        self._left -= 1
        if self._left < 0:
            raise self._error(place, f"references stand for more than {MAX_VALUES:,} values")
        if isinstance(value, dict):
            return {key: self.value(part, (*place, key)) for key, part in value.items()}
        if isinstance(value, list):
            return [self.value(part, (*place, str(i))) for i, part in enumerate(value)]
        return self._text(value, place) if isinstance(value, str) else value

    def _text(self, text: str, place: tuple[str, ...]) -> Any:
        whole = _REFERENCE.fullmatch(text)
        if whole:
            found, value = self._follow(whole, place)
            return value if found else text

        def replaced(match: re.Match) -> str:
            found, value = self._follow(match, place)
            return str(value) if found and isinstance(value, (str, int, float)) else match[0]

        filled_in = _REFERENCE.sub(replaced, text)
        if filled_in != text and len(filled_in) > MAX_TEXT:
            raise self._error(place, f"references make a text of more than {MAX_TEXT:,} characters")
        return filled_in

    def _follow(self, match: re.Match, place: tuple[str, ...]) -> tuple[bool, Any]:
        """Whether a reference leads somewhere, and what stands there, with its references filled
        in."""
        dots, path = match[1], match[2].strip()
        names = tuple(name for name in re.split(r"[.\[\]]+", path) if name)
        # One dot is the section that the reference stands in, each more the one above.
        target = (place[: max(0, len(place) - len(dots))] if dots else ()) + names
        value: Any = self._config
        for number, name in enumerate(target):
            if isinstance(value, str):  # the section may be a reference itself
                value = self._text(value, target[:number])
            if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            elif isinstance(value, dict) and name in value:
                value = value[name]
            else:
                return False, None
        if target in self._following or target == place[: len(target)]:
            raise self._error(place, f"{match[0]} leads back to itself")
        if len(self._following) == MAX_DEPTH:
            raise self._error(place, f"more than {MAX_DEPTH} references lead to each other")
        self._following.append(target)
        found = self.value(value, target)
        self._following.pop()
        return True, found

    def _error(self, place: tuple[str, ...], problem: str) -> ConversionError:
        return ConversionError(f"{self._file}: {'.'.join(place)}: {problem}")
