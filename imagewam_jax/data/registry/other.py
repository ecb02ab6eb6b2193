"""Sets whose actions are not those of one hand: joints, two arms, driving.

Sources: TFDS catalog for keys and widths (`robo_set`, `aloha_mobile`, `berkeley_*`), RDT's
`dataset_control_freq.json` for rates, OpenVLA's loader for the gripper of RoboSet; for RoboTwin
docs/spec/imagewam_flux2.md, 7.2 and the RLDS layout of OpenVLA-OFT's ALOHA builders.
"""

from imagewam_jax.data.dataset_spec import DatasetSpec, views
from imagewam_jax.data.registry.encodings import (
    JOINT,
    JOINT_BIMANUAL,
    JOINT_BIMANUAL_NAV,
    JOINT_DELTA,
    JOINT_TARGET,
    NAV_2D,
    NAV_POSE,
    POS_QUAT,
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


ROWS = (
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
        cuts=("bimanual_non_idle",),
    ),
    _navigation("berkeley_gnm_recon", 3.0),
    _navigation("berkeley_gnm_cory_hall", 5.0),
    _navigation("berkeley_gnm_sac_son", 10.0),
)
