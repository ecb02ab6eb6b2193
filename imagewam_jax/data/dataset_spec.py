"""Dataset specs: what the pipeline must know of a dataset to read it, as plain data.

Also the encodings of actions and states that many datasets share.
"""

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from imagewam_jax.errors import DataError

ROLES = ("primary", "secondary", "wrist", "left_wrist", "right_wrist")


@dataclasses.dataclass(frozen=True)
class Camera:
    """One stored image feature.

    key: its path below `steps`, such as "observation/image".
    bgr: the channels are stored in the order blue, green, red.
    upside_down: the stored image must be turned by 180 degrees to be the right way up.
    """

    key: str
    bgr: bool = False
    upside_down: bool = False


def views(*, bgr: tuple[str, ...] = (), **roles: str) -> tuple[tuple[str, Camera], ...]:
    """(role, camera) pairs from keys below `observation/`; `bgr` lists roles stored as BGR."""
    return tuple(
        (role, Camera(f"observation/{key}", bgr=role in bgr)) for role, key in roles.items()
    )


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What the numbers of an action or a state mean.

    name: one word for the kind of encoding.
    dims: a name per dimension; () if the dataset has no such array.
    relative: per dimension, True for a displacement (past an episode's end it is 0: stand still),
      False for an absolute target or reading (past the end it repeats).
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

    cameras: (role, camera) pairs; configs ask for cameras by role, one of `ROLES`.
    action, state: encodings of the arrays that the transform returns.
    control_hz: steps per second of the recorded control loop.
    language: keys of step or episode features that hold the instruction; several keys are
      alternative wordings, () means that the dataset has no instructions.
    transform: a name in `TRANSFORMS`, or a user's "package.module:function".
    action_keys, state_keys: features that `as_stored` and `columns` concatenate.
    filters: names in `FILTERS` or users' functions; a sample may start only at steps that all of
      them allow.
    drop_filters: filters that take steps out of the episode: where one of them does not allow a
      step, the steps before and after it become neighbours.
    options: (name, value) pairs for the transform and the filters; values are JSON, with tuples
      for lists.
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
    drop_filters: tuple[str, ...] = ()
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
        """The camera that has this role. DataError names the roles that the dataset has."""
        cameras = dict(self.cameras)
        if role not in cameras:
            raise DataError(f"{self.name!r} has no camera {role!r}, it has {sorted(cameras)}")
        return cameras[role]

    def option(self, name: str, default: Any = None) -> Any:
        return dict(self.options).get(name, default)


POSITION = ("x", "y", "z")
EULER = ("roll", "pitch", "yaw")
QUATERNION = ("qx", "qy", "qz", "qw")
AXIS_ANGLE = ("rx", "ry", "rz")
JOINTS = tuple(f"joint_{n}" for n in range(1, 8))


def absolute(name: str, *dims: str) -> Encoding:
    """An encoding without displacements, for states and for actions that are targets."""
    return Encoding(name, dims, (False,) * len(dims))


def _arm(side: str) -> tuple[str, ...]:
    return (*(f"{side}_{joint}" for joint in JOINTS[:6]), f"{side}_gripper")


# Encodings of actions. The gripper of an action is 1 when open and 0 when closed, unless a comment
# in a dataset spec says otherwise.
EEF_DELTA = Encoding("eef_delta", (*POSITION, *EULER, "gripper"), (True,) * 6 + (False,))
EEF_TARGET = absolute("eef_target", *POSITION, *EULER, "gripper")
JOINT_DELTA = Encoding("joint_delta", (*JOINTS, "gripper"), (True,) * 7 + (False,))
JOINT_TARGET = absolute("joint_target", *JOINTS, "gripper")
NAV_2D = Encoding("nav_2d", ("x", "y"), (True, True))

# Encodings of states, in the units and with the gripper sense of their dataset.
NO_STATE = absolute("none")
POS_EULER = absolute("pos_euler", *POSITION, *EULER, "gripper")
POS_QUAT = absolute("pos_quat", *POSITION, *QUATERNION, "gripper")
POS_AXIS_ANGLE = absolute("pos_axis_angle", *POSITION, *AXIS_ANGLE, "gripper")
JOINT = absolute("joint", *JOINTS, "gripper")
JOINT_ONLY = absolute("joint_only", *JOINTS)  # the gripper is not recorded
NAV_POSE = absolute("nav_pose", "x", "y", "yaw")

# Two arms; JOINT_BIMANUAL is a state as well as the targets of an action.
JOINT_BIMANUAL = absolute("joint_bimanual", *_arm("left"), *_arm("right"))
JOINT_BIMANUAL_NAV = Encoding(
    "joint_bimanual_nav",
    (*JOINT_BIMANUAL.dims, "base_linear", "base_angular"),
    (False,) * 14 + (True, True),
)

ENCODINGS: Mapping[str, Encoding] = MappingProxyType(
    {value.name: value for value in tuple(globals().values()) if isinstance(value, Encoding)}
)
