"""The Open X-Embodiment datasets of the two public mixtures, as the Open-X release stores them.

Sources. Keys and widths: the TFDS catalog pages of `tfds.robotics.rtx`. Which columns are actions
and states, and the senses of grippers: the public loaders of Octo
(`oxe_standardization_transforms.py`) and OpenVLA (`rlds/oxe/transforms.py`). Control rates: the
Open-X dataset overview as tabulated by RDT (`dataset_control_freq.json`). Colour order: the mods
that `rlds_dataset_mod` applies when it makes the copies that Octo and OpenVLA train on. Such a copy
has RGB images throughout; its spec is {"name": ..., "like": ..., "cameras": {...}} without `bgr`.

Whether an action is a displacement or a target is what the catalog says of it, where it does. It
is not documented for toto, ucsd_kitchen, fmb_dataset, dobbe and furniture_bench, and the pages of
cmu_stretch and dlr_edan_shared_control say "position" of what the loaders treat as displacements:
these specs are a judgement. `imagewam data show` draws the numbers; a spec in a config that is
`like` one of these can say otherwise.

A mixture may blank the instructions of a dataset; that is a property of its entry in the mixture,
not of the dataset spec.
"""

from imagewam_jax.data.dataset_spec import (
    EEF_DELTA,
    EEF_TARGET,
    EULER,
    JOINT,
    JOINT_ONLY,
    JOINTS,
    NO_STATE,
    POS_AXIS_ANGLE,
    POS_EULER,
    POS_QUAT,
    POSITION,
    DatasetSpec,
    absolute,
    views,
)

CONVERTED = "_converted_externally_to_rlds"  # part of the name on disk
NATURAL = ("observation/natural_language_instruction",)
VECTORS = ("action/world_vector", "action/rotation_delta")
CLOSEDNESS = "action/gripper_closedness_action"

# What many of these specs have in common.
ONE_VECTOR_EACH = {
    "transform": "columns",
    "action_keys": ("action",),
    "state_keys": ("observation/state",),
}
VECTORS_AND_GRIPPER = {
    "language": NATURAL,
    "transform": "columns",
    "action_keys": (*VECTORS, CLOSEDNESS),
}

SPECS = (
    DatasetSpec(
        name="fractal20220817_data",
        cameras=views(primary="image"),
        action=EEF_DELTA,
        state=POS_QUAT,
        control_hz=3.0,
        **VECTORS_AND_GRIPPER,
        state_keys=("observation/base_pose_tool_reached", "observation/gripper_closed"),
        options=(("gripper", "relative"),),
    ),
    DatasetSpec(
        name="kuka",
        cameras=views(primary="image"),
        action=EEF_DELTA,
        state=POS_QUAT,
        control_hz=10.0,
        language=NATURAL,
        transform="kuka",
        action_keys=(*VECTORS, CLOSEDNESS),
        state_keys=(
            "observation/clip_function_input/base_pose_tool_reached",
            "observation/gripper_closed",
        ),
        filters=("success",),  # the episode's flag `success`
        options=(("gripper", "relative"),),
    ),
    DatasetSpec(
        name="taco_play",
        cameras=views(primary="rgb_static", wrist="rgb_gripper"),
        action=EEF_DELTA,
        state=POS_EULER,
        control_hz=15.0,
        language=NATURAL,
        transform="columns",
        action_keys=("action/rel_actions_world",),
        state_keys=("observation/robot_obs",),
        # The catalog has the gripper's width in column 6, a joint in 7. The public loaders read 7.
        options=(("state_columns", tuple(range(7))), ("gripper", "clip")),
    ),
    DatasetSpec(
        name="jaco_play",
        cameras=views(primary="image", wrist="image_wrist"),
        action=EEF_DELTA,
        state=POS_EULER,
        control_hz=10.0,
        language=NATURAL,
        transform="columns",
        action_keys=("action/world_vector", CLOSEDNESS),
        state_keys=("observation/end_effector_cartesian_pos",),
        options=(("action_columns", (0, 1, 2, None, None, None, 3)), ("gripper", "relative")),
    ),
    DatasetSpec(
        name="berkeley_cable_routing",
        cameras=views(primary="image", secondary="top_image", wrist="wrist45_image"),
        action=EEF_DELTA,  # the gripper never moves: 0
        state=JOINT_ONLY,
        control_hz=10.0,
        language=NATURAL,
        transform="columns",
        action_keys=VECTORS,
        state_keys=("observation/robot_state",),
        options=(("action_columns", (0, 1, 2, 3, 4, 5, None)),),
    ),
    DatasetSpec(
        name="roboturk",
        cameras=views(primary="front_rgb"),
        action=EEF_DELTA,
        state=NO_STATE,
        control_hz=10.0,
        **VECTORS_AND_GRIPPER,
        options=(("gripper", "clip_invert"),),
    ),
    DatasetSpec(
        name="nyu_door_opening_surprising_effectiveness",
        cameras=views(wrist="image"),
        action=EEF_DELTA,
        state=NO_STATE,
        control_hz=3.0,
        **VECTORS_AND_GRIPPER,
        options=(("gripper", "relative"),),
    ),
    DatasetSpec(
        name="viola",
        cameras=views(primary="agentview_rgb", wrist="eye_in_hand_rgb"),
        action=EEF_DELTA,
        state=JOINT,
        control_hz=20.0,
        **VECTORS_AND_GRIPPER,
        state_keys=("observation/joint_states", "observation/gripper_states"),
        options=(("gripper", "clip_invert"),),
    ),
    DatasetSpec(
        name="berkeley_autolab_ur5",
        cameras=views(primary="image", wrist="hand_image", bgr=("wrist",)),
        action=EEF_DELTA,
        state=POS_QUAT,
        control_hz=5.0,
        **VECTORS_AND_GRIPPER,
        state_keys=("observation/robot_state",),
        options=(("state_columns", tuple(range(6, 14))), ("gripper", "relative")),
    ),
    DatasetSpec(
        name="toto",
        cameras=views(primary="image"),
        action=EEF_TARGET,
        state=JOINT_ONLY,
        control_hz=30.0,
        language=NATURAL,
        transform="columns",
        action_keys=(*VECTORS, "action/open_gripper"),
        state_keys=("observation/state",),
    ),
    DatasetSpec(
        name="language_table",
        cameras=views(primary="rgb"),
        action=EEF_DELTA,  # in the plane; there is no gripper: 1
        state=absolute("xy", "x", "y"),
        control_hz=10.0,
        language=("observation/instruction",),  # int32[512], code points
        transform="columns",
        action_keys=("action",),
        state_keys=("observation/effector_translation",),
        options=(("action_columns", (0, 1, *(None,) * 5)), ("gripper", "open")),
    ),
    DatasetSpec(
        name="stanford_hydra_dataset" + CONVERTED,
        cameras=views(primary="image", wrist="wrist_image", bgr=("primary", "wrist")),
        action=EEF_DELTA,
        state=POS_EULER,
        control_hz=10.0,
        **ONE_VECTOR_EACH,
        # Position 0-2, quaternion 3-6, Euler angles 7-9, ..., gripper 24-26.
        options=(("state_columns", (0, 1, 2, 7, 8, 9, -3)), ("gripper", "invert")),
    ),
    DatasetSpec(
        name="austin_buds_dataset" + CONVERTED,
        cameras=views(primary="image", wrist="wrist_image"),
        action=EEF_DELTA,
        state=JOINT,
        control_hz=20.0,
        **ONE_VECTOR_EACH,
        options=(("state_columns", tuple(range(8))), ("gripper", "clip_invert")),
    ),
    DatasetSpec(
        name="nyu_franka_play_dataset" + CONVERTED,
        cameras=views(primary="image", secondary="image_additional_view"),
        action=EEF_DELTA,
        state=absolute("pos_euler_only", *POSITION, *EULER),
        control_hz=3.0,
        **ONE_VECTOR_EACH,
        # Action: joint velocities 0-6, displacement 7-12, gripper 13, end of episode 14.
        options=(
            ("action_columns", (-8, -7, -6, -5, -4, -3, -2)),
            ("state_columns", (-6, -5, -4, -3, -2, -1)),
            ("gripper", "clip"),
        ),
    ),
    DatasetSpec(
        name="furniture_bench_dataset" + CONVERTED,
        cameras=views(primary="image", wrist="wrist_image"),
        action=EEF_DELTA,
        state=POS_QUAT,
        control_hz=10.0,
        **ONE_VECTOR_EACH,
        options=(
            ("state_columns", (0, 1, 2, 3, 4, 5, 6, -1)),
            ("rotation", "quaternion"),
            ("gripper", "clip_invert"),
        ),
    ),
    DatasetSpec(
        name="ucsd_kitchen_dataset" + CONVERTED,
        cameras=views(primary="image"),
        action=EEF_TARGET,  # in millimetres and degrees
        state=JOINT_ONLY,
        control_hz=2.0,
        **ONE_VECTOR_EACH,
        options=(("action_columns", tuple(range(7))), ("state_columns", tuple(range(7)))),
    ),
    DatasetSpec(
        name="austin_sailor_dataset" + CONVERTED,
        cameras=views(primary="image", wrist="wrist_image"),
        action=EEF_DELTA,
        state=POS_QUAT,
        control_hz=20.0,
        **ONE_VECTOR_EACH,
        options=(("gripper", "clip_invert"),),
    ),
    DatasetSpec(
        name="austin_sirius_dataset" + CONVERTED,
        cameras=views(primary="image", wrist="wrist_image"),
        action=EEF_DELTA,
        state=JOINT,  # so the catalog says; the public loaders call it position and quaternion
        control_hz=20.0,
        **ONE_VECTOR_EACH,
        options=(("gripper", "clip_invert"),),
    ),
    DatasetSpec(
        name="bc_z",  # version 0.1.0: later ones are known to be broken
        cameras=views(primary="image"),
        action=EEF_DELTA,  # the rotation is an axis-angle residual
        state=POS_AXIS_ANGLE,
        control_hz=10.0,
        language=NATURAL,
        transform="columns",
        # Each holds the next 10 actions, of which the first is this step's.
        action_keys=(
            "action/future/xyz_residual",
            "action/future/axis_angle_residual",
            "action/future/target_close",
        ),
        state_keys=(
            "observation/present/xyz",
            "observation/present/axis_angle",
            "observation/present/sensed_close",
        ),
        options=(("action_columns", (0, 1, 2, 30, 31, 32, 60)), ("gripper", "invert")),
    ),
    DatasetSpec(
        name="dlr_edan_shared_control" + CONVERTED,
        cameras=views(primary="image"),
        action=EEF_DELTA,
        state=POS_EULER,
        control_hz=5.0,
        **ONE_VECTOR_EACH,
        options=(("gripper", "invert"),),
    ),
    DatasetSpec(
        name="iamlab_cmu_pickup_insert" + CONVERTED,
        cameras=views(primary="image", wrist="wrist_image"),
        action=EEF_TARGET,
        state=JOINT,
        control_hz=20.0,
        **ONE_VECTOR_EACH,
        options=(("state_columns", tuple(range(8))), ("rotation", "quaternion")),
    ),
    DatasetSpec(
        name="utaustin_mutex",
        cameras=views(primary="image", wrist="wrist_image", bgr=("primary", "wrist")),
        action=EEF_DELTA,
        state=JOINT,
        control_hz=20.0,
        **ONE_VECTOR_EACH,
        options=(("state_columns", tuple(range(8))), ("gripper", "clip_invert")),
    ),
    DatasetSpec(
        name="berkeley_fanuc_manipulation",
        cameras=views(primary="image", wrist="wrist_image", bgr=("primary", "wrist")),
        action=EEF_DELTA,
        state=absolute("joint_6", *JOINTS[:6], "gripper"),
        control_hz=10.0,
        transform="columns",
        # No gripper action is stored: it is 1 - the gripper of the state, its column 6.
        action_keys=("action", "observation/state"),
        state_keys=("observation/state",),
        options=(
            ("action_columns", (0, 1, 2, 3, 4, 5, 12)),
            ("state_columns", tuple(range(7))),
            ("gripper", "invert"),
        ),
    ),
    DatasetSpec(
        name="cmu_stretch",
        cameras=views(primary="image"),
        action=EEF_DELTA,
        state=absolute("pos", *POSITION, "gripper"),
        control_hz=10.0,
        **ONE_VECTOR_EACH,
        options=(("action_columns", tuple(range(7))),),
    ),
    DatasetSpec(
        name="fmb_dataset",  # TFDS publishes it as `fmb`, with the same keys
        cameras=views(primary="image_side_1", secondary="image_side_2", wrist="image_wrist_1"),
        action=EEF_DELTA,
        state=POS_QUAT,  # eef_pose has 7 numbers, though the public loaders call it Euler
        control_hz=10.0,
        action_keys=("action",),
        state_keys=("observation/eef_pose", "observation/state_gripper_pose"),
    ),
    DatasetSpec(
        name="dobbe",
        cameras=views(primary="wrist_image"),
        action=EEF_DELTA,
        state=POS_EULER,
        control_hz=30.0,
        action_keys=("action",),
        state_keys=("observation/state",),
    ),
)
