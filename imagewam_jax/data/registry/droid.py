"""DROID 1.0.1: 95,617 episodes of a Franka at 15 Hz, images of 180 x 320.

Sources: the features of the release on its website (`droid/1.0.1`), and OpenVLA's loader, whose
actions in the base frame these are: cartesian_velocity, and 1 - gripper_position (stored 1 closed).
Each episode has up to three instructions, empty where there is none.
"""

from imagewam_jax.data.dataset_spec import DatasetSpec, views
from imagewam_jax.data.registry.encodings import EEF_DELTA, POS_EULER

ROWS = (
    DatasetSpec(
        name="droid",
        cameras=views(
            primary="exterior_image_1_left",
            secondary="exterior_image_2_left",
            wrist="wrist_image_left",
        ),
        action=EEF_DELTA,
        state=POS_EULER,
        control_hz=15.0,
        language=("language_instruction", "language_instruction_2", "language_instruction_3"),
        transform="columns",
        action_keys=("action_dict/cartesian_velocity", "action_dict/gripper_position"),
        state_keys=("observation/cartesian_position", "observation/gripper_position"),
        filters=("success", "non_idle"),
        options=(("gripper", "invert"), ("success_key", "episode_metadata/file_path")),
    ),
)
