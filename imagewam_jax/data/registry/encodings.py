"""The encodings that many rows share."""

from imagewam_jax.data.dataset_spec import Encoding

POSITION = ("x", "y", "z")
EULER = ("roll", "pitch", "yaw")
QUATERNION = ("qx", "qy", "qz", "qw")
AXIS_ANGLE = ("rx", "ry", "rz")
JOINTS = tuple(f"joint_{n}" for n in range(1, 8))


def absolute(name: str, *dims: str) -> Encoding:
    """An encoding without displacements: all states, and actions that are targets."""
    return Encoding(name, dims, (False,) * len(dims))


def _arm(side: str) -> tuple[str, ...]:
    return (*(f"{side}_{joint}" for joint in JOINTS[:6]), f"{side}_gripper")


# Actions. The gripper of an action is 1 open, 0 closed, unless a row's comment says otherwise.
EEF_DELTA = Encoding("eef_delta", (*POSITION, *EULER, "gripper"), (True,) * 6 + (False,))
EEF_TARGET = absolute("eef_target", *POSITION, *EULER, "gripper")
JOINT_DELTA = Encoding("joint_delta", (*JOINTS, "gripper"), (True,) * 7 + (False,))
JOINT_TARGET = absolute("joint_target", *JOINTS, "gripper")
NAV_2D = Encoding("nav_2d", ("x", "y"), (True, True))

# States, in the units and the sense of their dataset.
NO_STATE = absolute("none")
POS_EULER = absolute("pos_euler", *POSITION, *EULER, "gripper")
POS_QUAT = absolute("pos_quat", *POSITION, *QUATERNION, "gripper")
POS_AXIS_ANGLE = absolute("pos_axis_angle", *POSITION, *AXIS_ANGLE, "gripper")
JOINT = absolute("joint", *JOINTS, "gripper")
JOINT_ONLY = absolute("joint_only", *JOINTS)  # the gripper is not recorded
NAV_POSE = absolute("nav_pose", "x", "y", "yaw")

# Two arms: as a state, and as targets of an action.
JOINT_BIMANUAL = absolute("joint_bimanual", *_arm("left"), *_arm("right"))
JOINT_BIMANUAL_NAV = Encoding(
    "joint_bimanual_nav",
    (*JOINT_BIMANUAL.dims, "base_linear", "base_angular"),
    (False,) * 14 + (True, True),
)
