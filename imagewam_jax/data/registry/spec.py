"""What the pipeline must know of a dataset to read it, as one row of plain data."""

import dataclasses
import math
from typing import Any

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.transforms import describe_version, find_filter, find_transform

ROLES = ("primary", "secondary", "wrist", "left_wrist", "right_wrist")


@dataclasses.dataclass(frozen=True)
class Camera:
    """One stored image feature.

    key: its path below `steps`, "observation/image".
    bgr: the channels are stored in that order. upside_down: whoever reads it must turn it by 180
      degrees to have it the right way up.
    """

    key: str
    bgr: bool = False
    upside_down: bool = False


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What the numbers of an action or a state are.

    name: its kind, in a word. dims: a name per dimension, () if there is no such array.
    relative: per dimension, whether it is a displacement (past an episode's end it is 0: stand
      still) or an absolute target or reading (it repeats).
    """

    name: str
    dims: tuple[str, ...]
    relative: tuple[bool, ...]

    def __post_init__(self):
        if len(self.dims) != len(self.relative):
            raise DataError(
                f"encoding {self.name!r}: {len(self.relative)} flags of `relative` for "
                f"{len(self.dims)} dims {list(self.dims)}"
            )
        if len(set(self.dims)) != len(self.dims):
            raise DataError(f"encoding {self.name!r}: a dim occurs twice in {list(self.dims)}")


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """How the pipeline reads one RLDS dataset.

    cameras: (role, camera) pairs; the roles, of `ROLES`, are what configs ask for.
    action, state: what the transform makes.
    control_hz: steps per second of the recorded control loop.
    language: keys of the instruction, of a step or an episode; several are alternative wordings,
      () is a dataset without.
    transform: a name in `TRANSFORMS`, or "package.module:function" of a user.
    action_keys, state_keys: the features that `as_stored` and `columns` lay side by side.
    filters: names in `FILTERS` or a user's functions; a sample starts where all of them allow it.
    cuts: filters as well; steps that one of them does not allow are taken out of the episode, so
      that those before and after follow each other.
    options: (name, value) pairs for the transform and the filters; values are JSON with tuples.
    """

    name: str
    cameras: tuple[tuple[str, Camera], ...]
    action: Encoding
    state: Encoding
    control_hz: float
    language: tuple[str, ...] = ("language_instruction",)
    transform: str = "as_stored"
    action_keys: tuple[str, ...] = ()
    state_keys: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        roles = [role for role, _ in self.cameras]
        if len(set(roles)) != len(roles) or not set(roles) <= set(ROLES):
            raise DataError(
                f"{self.name}: camera roles {roles}, expected different ones of {list(ROLES)}"
            )
        if not 0 < self.control_hz < math.inf:
            raise DataError(f"{self.name}: control_hz is {self.control_hz}, expected more than 0")

    def camera(self, role: str) -> Camera:
        """The camera in a role; DataError names the roles there are."""
        cameras = dict(self.cameras)
        if role not in cameras:
            raise DataError(f"{self.name!r} has no camera {role!r}, it has {sorted(cameras)}")
        return cameras[role]

    def option(self, name: str, default: Any = None) -> Any:
        return dict(self.options).get(name, default)

    def check(self) -> None:
        """Looks up the transform and the filters; DataError if one is not there or ill named."""
        parts = [find_transform(self.transform), *map(find_filter, self.filters + self.cuts)]
        known = {name for part in parts for name in part.options}
        unknown = sorted({name for name, _ in self.options} - known)
        if unknown:
            raise DataError(
                f"{self.name}: options {unknown} are read by neither the transform "
                f"{self.transform!r} nor the filters {list(self.filters + self.cuts)}; known: "
                f"{sorted(known)}"
            )

    def identity(self) -> dict[str, Any]:
        """All that decides the standardised actions, states, starts and instructions, as JSON.

        The row's name and its cameras are no part of it: they change none of those.
        """
        return {
            "action": _jsonable(dataclasses.asdict(self.action)),
            "state": _jsonable(dataclasses.asdict(self.state)),
            "control_hz": float(self.control_hz),
            "language": list(self.language),
            "transform": describe_version(self.transform, find_transform(self.transform)),
            "action_keys": list(self.action_keys),
            "state_keys": list(self.state_keys),
            "filters": [describe_version(name, find_filter(name)) for name in self.filters],
            "cuts": [describe_version(name, find_filter(name)) for name in self.cuts],
            "options": _jsonable(dict(sorted(self.options))),
        }


def _jsonable(value: Any) -> Any:
    """Tuples as lists, so that a value equals what JSON reads back."""
    if isinstance(value, dict):
        return {key: _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_jsonable(item) for item in value]
    return value
