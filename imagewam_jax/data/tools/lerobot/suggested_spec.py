"""The dataset spec that reads an imported dataset, as far as a LeRobot folder tells it."""

import pprint
from typing import Any

from imagewam_jax.data.tools.camera_roles import camera_roles
from imagewam_jax.data.tools.lerobot.folder import LeRobotFolder
from imagewam_jax.data.tools.lerobot.layout import Layout


def suggested_spec(folder: LeRobotFolder, layout: Layout) -> dict[str, Any]:
    """An entry of `data.rows`.

    Two things are guesses for a person to check: the roles of cameras (by their names), and that no
    dimension of the action is relative (LeRobot does not record it).
    """
    action = _vector_keys(layout, "action")
    state = _vector_keys(layout, "observation/state")
    dims = _dims(layout, action)
    return {
        "cameras": camera_roles(layout.cameras.values()),
        "action": {"name": "as_recorded", "dims": dims, "relative": [False] * len(dims)},
        "state": {"name": "as_recorded", "dims": _dims(layout, state)},
        "action_keys": [layout.copied[key] for key in action],
        "state_keys": [layout.copied[key] for key in state],
        "control_hz": folder.fps,
        "language": ["language_instruction"],
    }


def describe_spec(folder: LeRobotFolder, layout: Layout, name: str) -> str:
    """The lines to put into a config, and what has to be checked in them."""
    spec = suggested_spec(folder, layout)
    unused = sorted(set(layout.cameras.values()) - set(spec["cameras"].values()))
    notes = [
        "check: `relative` is True for dimensions of the action that are displacements;",
        "       the cameras' roles are guessed from their names",
    ]
    if unused:
        notes.append(f"       cameras without a role: {unused}")
    body = pprint.pformat({name: spec}, width=96, sort_dicts=False, compact=True)
    lines = [f"config.data.dataset = {name!r}", f"config.data.rows = {body}"]
    return "\n".join([*lines, *(f"# {note}" for note in notes)])


def _vector_keys(layout: Layout, key: str) -> list[str]:
    """The LeRobot key of a vector, or else those of its pieces (`action.arm`, `action.hand`)."""
    exact = [k for k, target in layout.copied.items() if target == key]
    pieces = [k for k, target in layout.copied.items() if target.startswith(f"{key}_")]
    found = exact or pieces
    return [k for k in found if len(layout.features[k].shape) == 1]


def _dims(layout: Layout, keys: list[str]) -> list[str]:
    """A unique name for each dimension, from info.json where it has names."""
    dims = []
    for key in keys:
        feature = layout.features[key]
        dims += feature.names or [f"{layout.copied[key]}_{i}" for i in range(feature.shape[0])]
    return dims if len(set(dims)) == len(dims) else [f"{i}_{dim}" for i, dim in enumerate(dims)]
