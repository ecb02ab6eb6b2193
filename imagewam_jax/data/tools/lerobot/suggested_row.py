"""The registry row that reads an imported set, as far as a LeRobot folder lets one guess it."""

import pprint
import re
from collections.abc import Mapping
from typing import Any

from imagewam_jax.data.tools.lerobot.folder import LeRobotFolder
from imagewam_jax.data.tools.lerobot.layout import Layout

_ON_THE_HAND = re.compile(r"wrist|hand|gripper")


def suggested_row(folder: LeRobotFolder, layout: Layout) -> dict[str, Any]:
    """A section of `data.rows`.

    Guessed, for a person to check: the roles of cameras (by their names), and that no dimension of
    the action is relative, which LeRobot does not record.
    """
    action = _laid_side_by_side(layout, "action")
    state = _laid_side_by_side(layout, "observation/state")
    dims = _dims(layout, action)
    return {
        "cameras": _roles(layout.cameras),
        "action": {"name": "as_recorded", "dims": dims, "relative": [False] * len(dims)},
        "state": {"name": "as_recorded", "dims": _dims(layout, state)},
        "action_keys": [layout.copied[key] for key in action],
        "state_keys": [layout.copied[key] for key in state],
        "control_hz": folder.fps,
        "language": ["language_instruction"],
    }


def describe_row(folder: LeRobotFolder, layout: Layout, name: str) -> str:
    """What to put into a config, with what has to be checked in it."""
    row = suggested_row(folder, layout)
    unused = sorted(set(layout.cameras.values()) - set(row["cameras"].values()))
    notes = [
        "check: `relative` is True for dimensions of the action that are displacements;",
        "       the cameras' roles are guessed from their names",
    ]
    if unused:
        notes.append(f"       cameras without a role: {unused}")
    body = pprint.pformat({name: row}, width=96, sort_dicts=False, compact=True)
    lines = [f"config.data.dataset = {name!r}", f"config.data.rows = {body}"]
    return "\n".join([*lines, *(f"# {note}" for note in notes)])


def _roles(cameras: Mapping[str, str]) -> dict[str, str]:
    roles: dict[str, str] = {}
    for target in cameras.values():
        name = target.removeprefix("observation/").lower()
        if _ON_THE_HAND.search(name):
            side = next((s for s in ("left", "right") if s in name), "")
            wanted = (f"{side}_wrist",) if side else ("wrist",)
        else:
            wanted = ("primary", "secondary")
        role = next((role for role in wanted if role not in roles), None)
        if role is not None:
            roles[role] = target
    return roles


def _laid_side_by_side(layout: Layout, key: str) -> list[str]:
    """LeRobot keys of the feature itself, or else of its pieces (`action.arm`, `action.hand`)."""
    exact = [k for k, target in layout.copied.items() if target == key]
    pieces = [k for k, target in layout.copied.items() if target.startswith(f"{key}_")]
    found = exact or pieces
    return [k for k in found if len(layout.features[k].shape) == 1]


def _dims(layout: Layout, keys: list[str]) -> list[str]:
    """A name per number, those of info.json where it has them and none occurs twice."""
    dims = []
    for key in keys:
        feature = layout.features[key]
        dims += feature.names or [f"{layout.copied[key]}_{i}" for i in range(feature.shape[0])]
    return dims if len(set(dims)) == len(dims) else [f"{i}_{dim}" for i, dim in enumerate(dims)]
