"""Guesses which features of the steps are the action and the state, and what their numbers mean."""

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from imagewam_jax.data.index.columns import CODED_WIDTH, Column, Dense
from imagewam_jax.data.index.dataset_index import SplitIndex
from imagewam_jax.data.statistics.motion import Episode, action_kinds

MOST_STEPS = 50_000  # are read to measure what an action is
_ACTION = re.compile(r"action|command|cmd|control|ctrl|desired|(^|[_/.])target([_/.]|$)")
# One vector that holds everything, in the order in which it is taken.
_WHOLE_STATE = ("state", "proprio", "proprioception", "robot_state", "robot_obs", "agent_pos",
                "qpos", "states", "joint_state")  # fmt: skip
_NO_MOTION = re.compile(
    r"embed|latent|feature|depth|cloud|image|pixel|mask|calib|extrin|intrin|camera|"
    r"time|clock|date|seed|index|(^|[_/.])(id|idx|step|frame|phase)s?$|reward|discount|return|"
    r"is_(first|last|terminal)|done|success|terminat|truncat|box|bounds|language|instruction|goal"
)
# What part of a robot a feature is of, by its last name; the first pattern that fits.
_PARTS = (
    ("base", r"base_(disp|vel|act|twist|lin|ang)|wheel|mobile"),
    ("gripper", r"grip|finger|jaw|(^|_)(open|clos)"),
    ("joints", r"joint|qpos|qvel"),
    ("rotation", r"rot|quat|euler|rpy|orient|axis_angle|angular"),
    (
        "position",
        r"world_vector|pos|xyz|transl|vector|cartesian|(^|_)eef?(_|$)|tcp|linear|effector",
    ),
)
WIDEST_GRIPPER = 4
POSE = range(6, 10)  # numbers of a position with its rotation
_DIMS = {
    "position": {
        2: "x y",
        3: "x y z",
        6: "x y z roll pitch yaw",
        7: "x y z qx qy qz qw",
    },
    "rotation": {3: "roll pitch yaw", 4: "qx qy qz qw"},
}
_RELATIVE_NAME = re.compile(r"delta|(^|_)rel(_|$)|relative|displ|residual|vel|world_vector|twist")
_ABSOLUTE_NAME = re.compile(r"(^|_)abs(_|$)|absolute|target|qpos|joint_pos|position|(^|_)pose")


class Vector(NamedTuple):
    """The features that make an action or a state.

    keys: of the features, side by side. dims: a name for each number, all different.
    relative: a flag for each. reasons: sentences.
    """

    keys: tuple[str, ...]
    dims: tuple[str, ...]
    relative: tuple[bool, ...]
    reasons: tuple[str, ...]


def usable_numbers(split: SplitIndex) -> dict[str, int]:
    """The widths of the step features that a row can take as numbers, by key."""
    return {key: _width(column) for key, column in split.steps.items() if _is_vector(column)}


def _is_vector(column: Column) -> bool:
    """`transforms.base.numbers` takes one or several numbers per step; one can be 0 of them."""
    if not isinstance(column, Dense) or column.values.ndim > 2:
        return False
    return column.values.dtype.kind in "biuf" and 0 < _width(column) < CODED_WIDTH


def _width(column: Dense) -> int:
    return 1 if column.values.ndim == 1 else column.values.shape[1]


def guess_action_and_state(split: SplitIndex) -> tuple[Vector | None, Vector]:
    """The action, None if nothing looks like one, and the state, which may have no keys."""
    widths = usable_numbers(split)
    action_keys, why_action = _action_keys(widths)
    state_keys, why_state = _state_keys(
        {key: n for key, n in widths.items() if key not in action_keys},
        {key: split.steps[key].values.dtype.kind for key in widths},
        any(_part(key, widths[key]) == "joints" for key in action_keys),
    )
    state = Vector(
        state_keys,
        _dims(state_keys, widths, "state"),
        (False,) * sum(widths[key] for key in state_keys),
        why_state,
    )
    if not action_keys:
        return None, state
    dims = list(_dims(action_keys, widths, "action"))
    episodes = _episodes(split, action_keys, state_keys)
    relative, judged, reasons = [], [], list(why_action)
    if not episodes:
        episodes = [Episode(np.zeros((0, len(dims))), np.zeros((0, len(state.dims))))]
    actions, kinds = np.concatenate([e.actions for e in episodes]), action_kinds(episodes)
    names = [key.lower() for key in action_keys for _ in range(widths[key])]
    for dim, ((kind, measured), name) in enumerate(zip(kinds, names, strict=True)):
        is_gripper = dims[dim].startswith("gripper") or (
            len(action_keys) == 1 and dim == len(dims) - 1 > 0 and _switches(actions[:, dim])
        )
        if is_gripper:
            kind, measured = "absolute", "a gripper's, which is a target"
            dims[dim] = dims[dim] if dims[dim].startswith("gripper") else "gripper"
        elif not kind:
            kind, measured = _kind_of_name_or_values(name, actions[:, dim])
        relative.append(kind == "relative")
        judged.append(f"{kind}; {measured}")
    first = _quaternion(actions)
    if first is not None:
        reasons.append(
            f"columns {first} to {first + 3} have length 1 as a quaternion has; the transform "
            '"columns" makes angles of one: its options action_columns, which brings it into '
            "columns 3 to 6 in the order x, y, z, w, and rotation"
        )
    for reason, group in itertools.groupby(range(len(dims)), key=judged.__getitem__):
        reasons.append(f"{', '.join(dims[dim] for dim in group)}: {reason}")
    return Vector(action_keys, tuple(dims), tuple(relative), tuple(reasons)), state


def _action_keys(widths: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys, and why them."""
    named = [key for key in widths if _ACTION.search(key.lower())]
    named = [key for key in named if not _NO_MOTION.search(key.lower())]
    # What an observation calls a command may be that of another time.
    likely = [key for key in named if not key.startswith("observation/")] or named
    for key in ("action", "actions"):
        if key in likely:
            others = [other for other in likely if other != key]
            return (key,), (f"{key!r} is the name that RLDS gives it", *_left(others))
    if not likely:
        return (), ()
    joints = any(_part(key, widths[key]) == "joints" for key in likely)
    keys = _parts_of_one(likely, widths, joints, moving=True)
    others = [key for key in likely if key not in keys]
    return keys, (f"the name of {_names(keys)} says so", *_left(others))


def _state_keys(
    widths: Mapping[str, int], kinds: Mapping[str, str], joints: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    likely = [
        key
        for key in widths
        if not _NO_MOTION.search(key.lower()) and not _ACTION.search(key.lower())
    ]
    for name in _WHOLE_STATE:
        whole = [key for key in likely if _last(key) == name]
        if whole:
            key = min(whole, key=lambda key: (not key.startswith("observation"), key))
            return (key,), (f"the name of {key!r} says so", *_left(k for k in likely if k != key))
    parts = {key: _part(key, widths[key]) for key in likely}
    of_robot = [
        key
        for key in likely
        if parts[key] == "gripper" or (parts[key] != "other" and kinds[key] == "f")
    ]
    rest = [key for key in likely if kinds[key] == "f" and key.startswith("observation/")]
    keys = _parts_of_one(of_robot, widths, joints) if of_robot else tuple(sorted(rest))
    others = _left(key for key in likely if key not in keys)
    if not keys:
        return (), ("nothing looks like the state of a robot: the policy has images alone", *others)
    return keys, (f"the name of {_names(keys)} says so", *others)


def _parts_of_one(
    keys: Sequence[str], widths: Mapping[str, int], joints: bool, moving: bool = False
) -> tuple[str, ...]:
    """One feature for each part: the pose or the joints, and the gripper.

    Datasets often hold the same thing in several ways; those are alternatives. Of an action,
    displacements and velocities come first.
    """

    def first(part: str) -> list[str]:
        there = [key for key in keys if _part(key, widths[key]) == part]
        prefer = _RELATIVE_NAME if moving and part != "gripper" else re.compile(r"pos|state")
        return sorted(there, key=lambda key: (not prefer.search(_last(key)), "grip" in key, key))[
            :1
        ]

    position, rotation, gripper = first("position"), first("rotation"), first("gripper")
    if position and widths[position[0]] in POSE:
        rotation = []
    found = [*position, *rotation]
    if first("joints") and ((joints and not found) or (joints and not moving)):
        found = first("joints")
    found = found or first("joints")
    if not found:
        others = sorted(key for key in keys if _part(key, widths[key]) == "other")
        whole = [key for key in first("other") if widths[key] >= POSE.start]
        found = whole or others or first("base")
    return tuple(found + gripper)


def _last(key: str) -> str:
    return key.rpartition("/")[2].lower()


def _part(key: str, width: int) -> str:
    name = _last(key)
    part = next((part for part, pattern in _PARTS if re.search(pattern, name)), "other")
    # "In the frame of the gripper" is another thing than the gripper.
    return "other" if part == "gripper" and width > WIDEST_GRIPPER else part


def _names(keys: Sequence[str]) -> str:
    return ", ".join(map(repr, keys))


def _left(keys) -> tuple[str, ...]:
    keys = list(keys)
    return (f"left out: {_names(keys)}",) if keys else ()


def _dims(keys: Sequence[str], widths: Mapping[str, int], what: str) -> tuple[str, ...]:
    """A name for each number, different ones."""
    dims: list[str] = []
    for key in keys:
        width = widths[key]
        part = _part(key, width)
        name = "joint" if part == "joints" else part if part != "other" else what
        known = _DIMS.get(part, {}).get(width)
        first = int(part == "joints")  # joints count from 1, as in the registry
        numbered = [name] if width == 1 else [f"{name}_{i + first}" for i in range(width)]
        if part == "other" and len(keys) > 1:
            last = _last(key)
            numbered = [last] if width == 1 else [f"{last}_{i}" for i in range(width)]
        names = known.split() if known else numbered
        if set(names) & set(dims):
            names = [f"{key.replace('/', '_')}_{i}" for i in range(width)]
        dims += names
    return tuple(dims)


def _episodes(
    split: SplitIndex, action_keys: Sequence[str], state_keys: Sequence[str]
) -> list[Episode]:
    """Episodes that are spread over the split, of about `MOST_STEPS` steps together."""
    lengths = np.diff(split.episode_start)
    every = max(1, -(-int(lengths.sum()) // MOST_STEPS))
    episodes = []
    for number in np.flatnonzero(lengths > 0)[::every].tolist():
        rows = slice(*split.episode_start[number : number + 2].tolist())
        episodes.append(Episode(_side_by_side(split, action_keys, rows),
                                _side_by_side(split, state_keys, rows)))  # fmt: skip
    return episodes


def _side_by_side(split: SplitIndex, keys: Sequence[str], rows: slice) -> np.ndarray:
    count = rows.stop - rows.start
    found = [split.steps[key][rows].reshape(count, -1).astype(np.float64) for key in keys]
    return np.concatenate([np.zeros((count, 0)), *found], axis=1)


def _quaternion(values: np.ndarray) -> int | None:
    """The first of four columns whose length is 1 at every step though they vary, if there are."""
    for first in range(values.shape[1] - 3):
        four = values[:, first : first + 4]
        length_1 = np.abs(np.linalg.norm(four, axis=1) - 1) < 1e-3
        if len(four) and length_1.all() and four.std(0).max() > 1e-3:
            return first
    return None


def _switches(values: np.ndarray) -> bool:
    """Whether values lie at two ends, as those of a gripper that opens and closes."""
    finite = values[np.isfinite(values)]
    if not len(finite) or finite.min() == finite.max():
        return False
    place = (finite - finite.min()) / (finite.max() - finite.min())
    return bool(((place < 0.05) | (place > 0.95)).mean() > 0.9)


def _kind_of_name_or_values(name: str, values: np.ndarray) -> tuple[str, str]:
    """Displacements lie around 0."""
    for kind, pattern in (("relative", _RELATIVE_NAME), ("absolute", _ABSOLUTE_NAME)):
        found = pattern.search(_last(name))
        if found:
            return kind, f"its key says {found[0].strip('_')!r}"
    finite = values[np.isfinite(values)]
    if len(finite) and finite.std() > 0 and abs(finite.mean()) < 0.5 * finite.std():
        return "relative", "a guess: it lies around 0 as displacements do"
    return "absolute", "a guess: it does not lie around 0 as displacements do"
