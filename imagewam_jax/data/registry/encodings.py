"""The encodings that many rows share."""

from imagewam_jax.data.registry.spec import Encoding

POSITION = ("x", "y", "z")
EULER = ("roll", "pitch", "yaw")
QUATERNION = ("qx", "qy", "qz", "qw")
JOINTS = tuple(f"joint_{n}" for n in range(1, 8))


def absolute(name: str, *dims: str) -> Encoding:
    """An encoding without displacements: all states, and actions that are targets."""
    return Encoding(name, dims, (False,) * len(dims))


# Actions. The gripper of an action is 1 open, 0 closed, unless a row's comment says otherwise.
EEF_DELTA = Encoding("eef_delta", (*POSITION, *EULER, "gripper"), (True,) * 6 + (False,))
EEF_TARGET = absolute("eef_target", *POSITION, *EULER, "gripper")

# States, in the units and the sense of their dataset.
NO_STATE = absolute("none")
POS_EULER = absolute("pos_euler", *POSITION, *EULER, "gripper")
POS_QUAT = absolute("pos_quat", *POSITION, *QUATERNION, "gripper")
JOINT = absolute("joint", *JOINTS, "gripper")
