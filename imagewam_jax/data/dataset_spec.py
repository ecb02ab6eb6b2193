"""What the pipeline must know of a dataset to read it, as one row of plain data."""

import dataclasses
import math
from typing import Any

from imagewam_jax.errors import DataError

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


def views(*, bgr: tuple[str, ...] = (), **roles: str) -> tuple[tuple[str, Camera], ...]:
    """Cameras by role, keys below `observation/`. bgr: the roles that are stored in that order."""
    return tuple(
        (role, Camera(f"observation/{key}", bgr=role in bgr)) for role, key in roles.items()
    )


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
