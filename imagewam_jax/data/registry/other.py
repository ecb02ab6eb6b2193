"""Datasets beside those of the Open X-Embodiment mixtures.

Our own, the LIBERO suites, BridgeData V2, DROID, and sets whose actions are not those of one hand.
"""

from imagewam_jax.data.dataset_spec import (
    AXIS_ANGLE,
    EEF_DELTA,
    JOINT,
    JOINT_BIMANUAL,
    JOINT_BIMANUAL_NAV,
    JOINT_DELTA,
    JOINT_TARGET,
    NAV_2D,
    NAV_POSE,
    POS_EULER,
    POS_QUAT,
    POSITION,
    DatasetSpec,
    Encoding,
    absolute,
    views,
)

METAWORLD_FAUCET = DatasetSpec(
    name="metaworld_faucet",
    cameras=views(primary="image"),
    # Displacement of the hand, and the effort of the gripper.
    action=Encoding("hand_delta", ("x", "y", "z", "gripper"), (True, True, True, False)),
    state=absolute("hand", "x", "y", "z", "gripper"),
    control_hz=80.0,
    action_keys=("action",),
    state_keys=("observation/state",),
)

# The four LIBERO suites as RLDS without idle steps, `modified_libero_rlds`. Sources: the data card
# and features of openvla/modified_libero_rlds, OpenVLA's `regenerate_libero_dataset.py`, and
# sections 7.2 and 9.2 of the porting specification. 20 Hz is the control rate of LIBERO's
# environments. Actions lie in [-1, 1], the controller's units.
#
# Both cameras are stored rotated by 180 degrees with respect to what the simulator renders. That is
# the right way up for a policy, which is trained on them as stored: the images of a simulator are
# turned before the policy sees them (docs/spec/imagewam_flux2.md, 9.2). So no camera is flagged `upside_down`.
LIBERO = tuple(
    DatasetSpec(
        name=f"{suite}_no_noops",
        cameras=views(primary="image", wrist="wrist_image"),
        action=EEF_DELTA,
        # Position in metres, axis-angle in radians, the positions of the two fingers in metres.
        state=absolute("pos_axis_angle_fingers", *POSITION, *AXIS_ANGLE, "finger_1", "finger_2"),
        control_hz=20.0,
        transform="columns",
        action_keys=("action",),
        state_keys=("observation/state",),
        options=(("gripper", "clip_invert"),),  # stored as -1 open, +1 closed
    )
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10")
)

# BridgeData V2: the original release and the copy in Open-X, at 5 Hz. Sources: TFDS catalog
# (`bridge`), the data's website (`bridge_dataset`), and the public loaders of Octo and OpenVLA,
# which both relabel the motion of an action by what the robot reached. The action of an episode's
# first step is stored as zeros, so no sample starts there.
BRIDGE = (
    DatasetSpec(
        name="bridge_dataset",  # about 60,000 trajectories; what the public mixtures mean
        cameras=views(primary="image_0", secondary="image_1"),
        action=EEF_DELTA,
        state=POS_EULER,
        control_hz=5.0,
        transform="reached",
        action_keys=("action",),
        state_keys=("observation/state",),
        filters=("not_first",),
        options=(("gripper", "binarise"),),
    ),
    DatasetSpec(
        name="bridge",  # 25,460 trajectories of training, one camera
        cameras=views(primary="image"),
        action=EEF_DELTA,
        state=POS_EULER,
        control_hz=5.0,
        language=("observation/natural_language_instruction",),
        transform="reached",
        action_keys=("action/world_vector", "action/rotation_delta", "action/open_gripper"),
        state_keys=("observation/state",),
        filters=("not_first",),
    ),
)

# DROID 1.0.1: 95,617 episodes of a Franka at 15 Hz, images of 180 x 320. Sources: the features of
# the release on its website (`droid/1.0.1`), and OpenVLA's loader, whose actions in the base frame
# these are: cartesian_velocity, and 1 - gripper_position (stored as 1 closed). Each episode has up
# to three instructions, which are empty where there is none.
DROID = (
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


def _navigation(name: str, control_hz: float) -> DatasetSpec:
    return DatasetSpec(
        name=name,
        cameras=views(primary="image"),
        action=NAV_2D,
        state=NAV_POSE,
        control_hz=control_hz,
        action_keys=("action",),
        state_keys=("observation/state",),
    )


# Joints, two arms, driving. Sources: TFDS catalog for keys and widths (`robo_set`, `aloha_mobile`,
# `berkeley_*`), RDT's `dataset_control_freq.json` for rates, OpenVLA's loader for the gripper of
# RoboSet; section 7.2 of the porting specification and the RLDS layout of OpenVLA-OFT's ALOHA
# builders for RoboTwin.
NOT_ONE_HAND = (
    DatasetSpec(
        name="berkeley_mvp_converted_externally_to_rlds",
        cameras=views(wrist="hand_image"),
        action=JOINT_DELTA,  # its gripper's sense is not documented; in the state 1 is closed
        state=POS_QUAT,
        control_hz=5.0,
        action_keys=("action",),
        state_keys=("observation/pose", "observation/gripper"),
    ),
    DatasetSpec(
        name="berkeley_rpt_converted_externally_to_rlds",
        cameras=views(wrist="hand_image"),
        action=JOINT_DELTA,  # the gripper as above
        state=JOINT,
        control_hz=30.0,
        action_keys=("action",),
        state_keys=("observation/joint_pos", "observation/gripper"),
    ),
    DatasetSpec(
        name="robo_set",  # also called roboset
        cameras=views(primary="image_left", secondary="image_right", wrist="image_wrist"),
        action=JOINT_TARGET,  # not documented, taken as targets
        state=JOINT,
        control_hz=5.0,
        transform="columns",
        action_keys=("action",),
        state_keys=("observation/state",),
        options=(("gripper", "clip_invert"),),
    ),
    DatasetSpec(
        name="aloha_mobile",
        cameras=views(
            primary="cam_high", left_wrist="cam_left_wrist", right_wrist="cam_right_wrist"
        ),
        action=JOINT_BIMANUAL_NAV,
        state=JOINT_BIMANUAL,
        control_hz=50.0,
        action_keys=("action",),
        state_keys=("observation/state",),
    ),
    DatasetSpec(
        name="robotwin",  # any set in the layout of ALOHA's RLDS builders
        cameras=views(
            primary="image", left_wrist="left_wrist_image", right_wrist="right_wrist_image"
        ),
        action=JOINT_BIMANUAL,
        state=JOINT_BIMANUAL,
        control_hz=50.0,  # what the published LeRobot sets of RoboTwin say of themselves
        action_keys=("action",),
        state_keys=("observation/state",),
        drop_filters=("bimanual_non_idle",),
    ),
    _navigation("berkeley_gnm_recon", 3.0),
    _navigation("berkeley_gnm_cory_hall", 5.0),
    _navigation("berkeley_gnm_sac_son", 10.0),
)

SPECS = (METAWORLD_FAUCET, *LIBERO, *BRIDGE, *DROID, *NOT_ONE_HAND)
