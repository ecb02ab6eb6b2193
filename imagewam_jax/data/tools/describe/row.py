"""The fields of a config that train on a dataset, as Python to paste, with a reason for each."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from imagewam_jax.data.index.dataset_index import DatasetIndex
from imagewam_jax.data.tools.describe.cameras import CameraGuess
from imagewam_jax.data.tools.describe.language import Texts, unlabelled_steps
from imagewam_jax.data.tools.describe.numbers import Vector
from imagewam_jax.storage.objects import AnyPath

HELD_OUT_SPLITS = ("val", "valid", "validation", "eval", "test", "heldout", "held_out")
HELD_OUT_SHARE = 0.05
WIDTH = 100
BUCKET_MULTIPLE = 4


class Guesses(NamedTuple):
    """What was guessed of a dataset, each with its reason."""

    cameras: CameraGuess
    action: Vector
    state: Vector
    language: tuple[tuple[str, ...], str]
    control_hz: tuple[float, str]


def row_of(guesses: Guesses) -> dict[str, Any]:
    """An entry of `data.rows`, as `registry.config` reads it."""
    action, state = guesses.action, guesses.state
    return {
        "cameras": guesses.cameras.roles,
        "action": {"name": "action", "dims": list(action.dims), "relative": list(action.relative)},
        "state": {"name": "state", "dims": list(state.dims)} if state.dims else "none",
        "control_hz": guesses.control_hz[0],
        "action_keys": list(action.keys),
        "state_keys": list(state.keys),
        "language": list(guesses.language[0]),
    }


def config_source(
    name: str,
    directory: Path,
    index: DatasetIndex,
    guesses: Guesses,
    texts: Mapping[str, Texts],
    count_tokens: Callable[[Sequence[str]], int],
    index_directory: AnyPath | None = None,
) -> str:
    """Assignments to fields of `config`, with comments.

    count_tokens: the tokens of the longest of some instructions.
    """
    row, cameras = row_of(guesses), guesses.cameras
    reasons = {
        "cameras": [f"{cameras.reason}; imagewam data show tells whether one is stored as BGR or "
                    'upside down ({"key": ..., "bgr": True})'],
        "action": [
            "relative: a displacement, which is 0 past the end of an episode",
            *guesses.action.reasons,
        ],
        "state": guesses.state.reasons,
        "control_hz": [guesses.control_hz[1]],
        "language": [guesses.language[1]],
    }  # fmt: skip
    lines = [*_assign("data.directory", str(directory.absolute())), *_assign("data.dataset", name)]
    if index_directory:
        lines += _assign("data.index_directory", str(index_directory.absolute()))
    lines += ["config.data.rows = {", f"    {_literal(name)}: {{"]
    for field, value in row.items():
        for reason in reasons.get(field, ()):
            lines += _comment(reason, 8)
        lines += _item(field, value, 8)
    lines += ["    }", "}"]
    lines += _assign("data.cameras", tuple(cameras.roles))
    lines += _assign("data.layout", cameras.layout)
    first = next(iter(cameras.roles))
    lines += _assign("data.image_size", cameras.image_size, f"rows and columns, those of {first}, "
                     "as multiples of 16")  # fmt: skip
    if cameras.letterbox:
        lines += _assign("data.letterbox", cameras.letterbox, "of another aspect ratio")
    train, held_out, why = _splits(index)
    lines += _assign("data.train_split", train, why) + _assign("data.eval_split", held_out)
    lines += _unlabelled(index, guesses.language[0])
    lines += _not_finite(index, (*guesses.action.keys, *guesses.state.keys))
    lines += _assign("model.expert.action_dim", len(guesses.action.dims))
    lines += _assign("model.proprio_dim", len(guesses.state.dims))
    lines += _buckets(guesses.language[0], texts, count_tokens)
    return "\n".join(lines)


def _splits(index: DatasetIndex) -> tuple[str, str, str]:
    """The training and the held-out split, and why."""
    steps = {name: split.num_frames for name, split in index.splits.items()}
    train = "train" if steps.get("train") else max(steps, key=steps.get)
    for name in HELD_OUT_SPLITS:
        if steps.get(name) and name != train:
            return train, name, ""
    filled = np.flatnonzero(np.diff(index.splits[train].episode_start) > 0)
    count = index.splits[train].num_episodes
    if len(filled) < 2:
        return train, train, "there is one episode alone: nothing is held out"
    first = int(filled[-max(1, round(HELD_OUT_SHARE * len(filled)))])
    why = f"no split is held out: the last {count - first} of {count} episodes are"
    if count >= 100 and first == round(0.95 * count):
        return f"{train}[:95%]", f"{train}[95%:]", why
    return f"{train}[:{first}]", f"{train}[{first}:]", why


def _unlabelled(index: DatasetIndex, keys: tuple[str, ...]) -> list[str]:
    if not keys:
        return []
    missing = sum(unlabelled_steps(split, keys) for split in index.splits.values())
    if not missing:
        return []
    total = sum(split.num_frames for split in index.splits.values())
    why = f'{missing} of {total} steps have no instruction; "blank" trains on them, too'
    return _assign("data.unlabelled", "drop", why)


def _not_finite(index: DatasetIndex, keys: Sequence[str]) -> list[str]:
    bad = total = 0
    for split in index.splits.values():
        finite = np.ones(split.num_frames, bool)
        for key in keys:
            finite &= np.isfinite(split.steps[key][:]).reshape(split.num_frames, -1).all(1)
        bad, total = bad + int((~finite).sum()), total + split.num_frames
    if not bad:
        return []
    why = f'{bad} of {total} steps hold a NaN or an infinite number; or "drop_episodes"'
    return _assign("data.not_finite", "drop_steps", why)


def _buckets(
    keys: tuple[str, ...], texts: Mapping[str, Texts], count_tokens: Callable
) -> list[str]:
    words = {text for key in keys for text in texts[key].counts} or {""}
    longest = sorted(words, key=lambda text: len(text.encode()))[-10:]
    tokens = count_tokens(longest)
    bucket = -(-tokens // BUCKET_MULTIPLE) * BUCKET_MULTIPLE
    why = f"the longest instruction has {tokens} tokens for byte_qwen3; qwen3 counts otherwise"
    return _assign("text.buckets", (bucket,), why)


def _literal(value: Any) -> str:
    """Python with double quotes."""
    if isinstance(value, str):
        text = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"' if text.isprintable() else repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_literal, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    return repr(value)


def _assign(field: str, value: Any, comment: str = "") -> list[str]:
    line = f"config.{field} = {_literal(value)}"
    if comment and len(line) + len(comment) + 4 > WIDTH:
        return [*_comment(comment, 0), line]
    return [line + (f"  # {comment}" if comment else "")]


def _item(name: str, value: Any, indent: int) -> list[str]:
    """An item of a dictionary, over several lines where one is too short."""
    pad = " " * indent
    line = f"{pad}{_literal(name)}: {_literal(value)},"
    if len(line) <= WIDTH or not isinstance(value, dict | list):
        return [line]
    if isinstance(value, dict):
        inner = [part for key, item in value.items() for part in _item(key, item, indent + 4)]
        return [f"{pad}{_literal(name)}: {{", *inner, f"{pad}}},"]
    items = textwrap.wrap(", ".join(map(_literal, value)) + ",", WIDTH - indent - 4,
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return [f"{pad}{_literal(name)}: [", *(f"{pad}    {part}" for part in items), f"{pad}],"]


def _comment(text: str, indent: int) -> list[str]:
    pad = " " * indent + "# "
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent=pad, subsequent_indent=pad,
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip
