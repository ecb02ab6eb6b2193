"""The four LIBERO suites as RLDS without idle steps, `modified_libero_rlds`.

Sources: the data card and features of openvla/modified_libero_rlds, OpenVLA's
`regenerate_libero_dataset.py`, and docs/spec/imagewam_flux2.md, 7.2 and 9.2. 20 Hz is the control
rate of LIBERO's environments. Actions lie in [-1, 1], the controller's units.

Both cameras are stored rotated by 180 degrees with respect to what the simulator renders, and that
is the right way up: a policy is trained on them as stored, and the images of a simulator are turned
before it sees them. So the cameras here are not flagged `upside_down`.
"""

from imagewam_jax.data.dataset_spec import Camera, DatasetSpec
from imagewam_jax.data.registry.encodings import AXIS_ANGLE, EEF_DELTA, POSITION, absolute

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")

# Position in metres, axis-angle in radians, the positions of the two fingers in metres.
STATE = absolute("pos_axis_angle_fingers", *POSITION, *AXIS_ANGLE, "finger_1", "finger_2")


def _suite(suite: str) -> DatasetSpec:
    return DatasetSpec(
        name=f"{suite}_no_noops",
        cameras=(
            ("primary", Camera("observation/image")),
            ("wrist", Camera("observation/wrist_image")),
        ),
        action=EEF_DELTA,
        state=STATE,
        control_hz=20.0,
        transform="columns",
        action_keys=("action",),
        state_keys=("observation/state",),
        options=(("gripper", "clip_invert"),),  # stored -1 open, +1 close
    )


ROWS = tuple(_suite(suite) for suite in SUITES)
