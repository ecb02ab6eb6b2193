"""Episodes that have ended, on disk: an evaluation that was killed goes on where it was.

A file of JSON lines. The first says what is evaluated, and with what; each other one how an episode
ended. Lines are flushed one by one. A kill may cut the last one off, and then its episode is played
again, with the same end: randomness depends on the episode and the step, never on the order.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from imagewam_jax.errors import ConfigError
from imagewam_jax.files import writing, written_whole

_FIELDS = {"way", "task", "seed", "success", "steps"}  # of a line, beside what was measured


class Ended(NamedTuple):
    """How an episode ended: whether the task was done, after how many actions."""

    success: bool
    steps: int


class Journal:
    """The ended episodes of one evaluation; closed by leaving its context.

    path: the file; its folder is there.
    identity: all that decides how an episode ends, as JSON.
    resume: what is there is read, and written on. Otherwise it is replaced.
    ConfigError: what is there is of another evaluation. WriteError: it cannot be written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, resume: bool):
        self._path = path
        self._ended: dict[tuple[str, str, int], Ended] = {}
        self._measured: dict[tuple[str, str, int], dict[str, Any]] = {}
        lines = _whole_lines(path) if resume and path.exists() else []
        if lines:
            check_identity(path, "episodes", lines[0], identity)
        else:
            lines = [dict(identity)]
        for line in lines[1:]:
            start = line["way"], line["task"], line["seed"]
            self._ended[start] = Ended(line["success"], line["steps"])
            self._measured[start] = {key: line[key] for key in line.keys() - _FIELDS}
        with writing(path):
            # Anew, since a line that was cut off would spoil the next one.
            with written_whole(path) as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
            self._file = path.open("a")

    def ended(self, way: str, episodes: Sequence[tuple[str, int]]) -> dict[int, Ended]:
        """Positions of the episodes (task, seed) that a policy variant has played to their ends."""
        starts = {i: (way, *episode) for i, episode in enumerate(episodes)}
        return {i: self._ended[start] for i, start in starts.items() if start in self._ended}

    def measured(self, way: str, episode: tuple[str, int]) -> Mapping[str, Any]:
        """What else was noted of an episode that has ended."""
        return self._measured[(way, *episode)]

    def add(
        self,
        way: str,
        episode: tuple[str, int],
        ended: Ended,
        measured: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Notes the end of an episode of a policy variant, and what was measured in it; once, if it
        is played again. WriteError: it cannot be written."""
        if self._ended.get((way, *episode)) == ended:
            return
        line = {"way": way, "task": episode[0], "seed": episode[1], **ended._asdict(), **measured}
        with writing(self._path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        self._ended[(way, *episode)] = ended
        self._measured[(way, *episode)] = dict(measured)

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """All lines but one that was cut off. ConfigError: the file holds something else."""
    text = path.read_text()
    try:
        return [dict(json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines()]
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not a list of ended episodes: {error}") from error


def check_identity(
    path: Path, what: str, found: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Raises ConfigError, which names the fields that differ, unless `found` equals `wanted`.

    what: what the file holds, for the message.
    """
    wanted = json.loads(json.dumps(wanted))  # as it would be read: lists for tuples
    names = sorted(set(found) | set(wanted))
    other = [
        f"{name} was {found.get(name)!r} and is {wanted.get(name)!r}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]
    if other:
        raise ConfigError(
            f"{path}: {what} of another evaluation: {'; '.join(other)}. Evaluate without "
            "--resume, or with another --output"
        )
