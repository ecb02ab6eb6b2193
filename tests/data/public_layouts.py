"""How public datasets store their steps: widths of numbers, "image" and "text", by key.

From the TFDS catalog pages of tfds.robotics.rtx and the features of the other releases. Only what
a row may read is listed; episode features stand by their key from the record's root.
"""

from types import MappingProxyType

import numpy as np

CONVERTED = "_converted_externally_to_rlds"

_NATURAL = {"observation/natural_language_instruction": "text"}
_TEXT = {"language_instruction": "text"}
_VECTORS = {"action/world_vector": 3, "action/rotation_delta": 3}
_LIBERO = {
    "observation/image": "image",
    "observation/wrist_image": "image",
    "observation/state": 8,
    "observation/joint_state": 7,
    "action": 7,
} | _TEXT
_TWO_VIEWS = {"observation/image": "image", "observation/wrist_image": "image"} | _TEXT
_GNM = {
    "observation/image": "image",
    "observation/state": 3,
    "observation/position": 2,
    "observation/yaw": 1,
    "action": 2,
    "action_angle": 3,
} | _TEXT

LAYOUTS = MappingProxyType(
    {
        "metaworld_faucet": {"observation/image": "image", "observation/state": 4, "action": 4}
        | _TEXT,
        **{f"libero_{suite}_no_noops": _LIBERO for suite in ("spatial", "object", "goal", "10")},
        "fractal20220817_data": {
            "action/gripper_closedness_action": 1,
            "observation/image": "image",
            "observation/base_pose_tool_reached": 7,
            "observation/gripper_closed": 1,
        }
        | _VECTORS
        | _NATURAL,
        "kuka": {
            "action/gripper_closedness_action": 1,
            "observation/image": "image",
            "observation/clip_function_input/base_pose_tool_reached": 7,
            "observation/gripper_closed": 1,
            "success": 0,
        }
        | _VECTORS
        | _NATURAL,
        "taco_play": {
            "action/actions": 7,
            "action/rel_actions_world": 7,
            "action/rel_actions_gripper": 7,
            "observation/rgb_static": "image",
            "observation/rgb_gripper": "image",
            "observation/robot_obs": 15,
        }
        | _NATURAL,
        "jaco_play": {
            "action/gripper_closedness_action": 1,
            "action/world_vector": 3,
            "observation/image": "image",
            "observation/image_wrist": "image",
            "observation/end_effector_cartesian_pos": 7,
        }
        | _NATURAL,
        "berkeley_cable_routing": {
            "observation/image": "image",
            "observation/top_image": "image",
            "observation/wrist45_image": "image",
            "observation/wrist225_image": "image",
            "observation/robot_state": 7,
        }
        | _VECTORS
        | _NATURAL,
        "roboturk": {"action/gripper_closedness_action": 1, "observation/front_rgb": "image"}
        | _VECTORS
        | _NATURAL,
        "nyu_door_opening_surprising_effectiveness": {
            "action/gripper_closedness_action": 1,
            "observation/image": "image",
        }
        | _VECTORS
        | _NATURAL,
        "viola": {
            "action/gripper_closedness_action": 0,
            "observation/agentview_rgb": "image",
            "observation/eye_in_hand_rgb": "image",
            "observation/joint_states": 7,
            "observation/gripper_states": 1,
        }
        | _VECTORS
        | _NATURAL,
        "berkeley_autolab_ur5": {
            "action/gripper_closedness_action": 0,
            "observation/image": "image",
            "observation/hand_image": "image",
            "observation/robot_state": 15,
        }
        | _VECTORS
        | _NATURAL,
        "toto": {
            "action/open_gripper": bool,
            "observation/image": "image",
            "observation/state": 7,
        }
        | _VECTORS
        | _NATURAL,
        "language_table": {
            "action": 2,
            "observation/rgb": "image",
            "observation/effector_translation": 2,
            "observation/instruction": 512,
        },
        "stanford_hydra_dataset" + CONVERTED: {"action": 7, "observation/state": 27} | _TWO_VIEWS,
        "austin_buds_dataset" + CONVERTED: {"action": 7, "observation/state": 24} | _TWO_VIEWS,
        "nyu_franka_play_dataset" + CONVERTED: {
            "action": 15,
            "observation/image": "image",
            "observation/image_additional_view": "image",
            "observation/state": 13,
        }
        | _TEXT,
        "furniture_bench_dataset" + CONVERTED: {"action": 8, "observation/state": 35} | _TWO_VIEWS,
        "ucsd_kitchen_dataset" + CONVERTED: {
            "action": 8,
            "observation/image": "image",
            "observation/state": 21,
        }
        | _TEXT,
        "austin_sailor_dataset" + CONVERTED: {"action": 7, "observation/state": 8} | _TWO_VIEWS,
        "austin_sirius_dataset" + CONVERTED: {"action": 7, "observation/state": 8} | _TWO_VIEWS,
        "bc_z": {
            "action/future/xyz_residual": 30,
            "action/future/axis_angle_residual": 30,
            "action/future/target_close": 10,
            "observation/image": "image",
            "observation/present/xyz": 3,
            "observation/present/axis_angle": 3,
            "observation/present/sensed_close": 1,
        }
        | _NATURAL,
        "dlr_edan_shared_control" + CONVERTED: {
            "action": 7,
            "observation/image": "image",
            "observation/state": 7,
        }
        | _TEXT,
        "iamlab_cmu_pickup_insert" + CONVERTED: {"action": 8, "observation/state": 20} | _TWO_VIEWS,
        "utaustin_mutex": {"action": 7, "observation/state": 24} | _TWO_VIEWS,
        "berkeley_fanuc_manipulation": {"action": 6, "observation/state": 13} | _TWO_VIEWS,
        "cmu_stretch": {"action": 8, "observation/image": "image", "observation/state": 4} | _TEXT,
        "fmb_dataset": {
            "action": 7,
            "observation/image_side_1": "image",
            "observation/image_side_2": "image",
            "observation/image_wrist_1": "image",
            "observation/eef_pose": 7,
            "observation/state_gripper_pose": 0,
        }
        | _TEXT,
        "dobbe": {"action": 7, "observation/wrist_image": "image", "observation/state": 7} | _TEXT,
        "bridge_dataset": {
            "action": 7,
            **{f"observation/image_{n}": "image" for n in range(4)},
            "observation/state": 7,
        }
        | _TEXT,
        "bridge": {
            "action/open_gripper": bool,
            "observation/image": "image",
            "observation/state": 7,
        }
        | _VECTORS
        | _NATURAL,
        "droid": {
            "action": 7,
            "action_dict/cartesian_velocity": 6,
            "action_dict/gripper_position": 1,
            "observation/exterior_image_1_left": "image",
            "observation/exterior_image_2_left": "image",
            "observation/wrist_image_left": "image",
            "observation/cartesian_position": 6,
            "observation/gripper_position": 1,
            "language_instruction_2": "text",
            "language_instruction_3": "text",
            "episode_metadata/file_path": "text",
        }
        | _TEXT,
        "berkeley_mvp" + CONVERTED: {
            "action": 8,
            "observation/hand_image": "image",
            "observation/pose": 7,
            "observation/gripper": bool,
        }
        | _TEXT,
        "berkeley_rpt" + CONVERTED: {
            "action": 8,
            "observation/hand_image": "image",
            "observation/joint_pos": 7,
            "observation/gripper": bool,
        }
        | _TEXT,
        "robo_set": {
            "action": 8,
            **{f"observation/image_{view}": "image" for view in ("left", "right", "top", "wrist")},
            "observation/state": 8,
        }
        | _TEXT,
        "aloha_mobile": {
            "action": 16,
            "observation/cam_high": "image",
            "observation/cam_left_wrist": "image",
            "observation/cam_right_wrist": "image",
            "observation/state": 14,
        }
        | _TEXT,
        "robotwin": {
            "action": 14,
            "observation/image": "image",
            "observation/left_wrist_image": "image",
            "observation/right_wrist_image": "image",
            "observation/state": 14,
        }
        | _TEXT,
        **{f"berkeley_gnm_{place}": _GNM for place in ("recon", "cory_hall", "sac_son")},
    }
)


def features_of(name: str, length: int) -> dict[str, np.ndarray]:
    """An episode in a dataset's layout, without its images; the numbers are simple and fixed.

    Element d of step t of the k-th key is ((7 t + 3 d + k) mod 11) / 10 - 0.4, so that every
    column moves and grippers meet values on all sides of their thresholds.
    """
    features: dict[str, np.ndarray] = {}
    for number, (key, kind) in enumerate(LAYOUTS[name].items()):
        if kind == "text":
            text = b"/data/success/run" if key.endswith("file_path") else b"do it"
            features[key] = np.array([text] * length, object)
        elif kind != "image":
            width = kind if isinstance(kind, int) else 0
            step = 7 * np.arange(length)[:, None] + 3 * np.arange(max(width, 1)) + number
            values = (step % 11 / 10 - 0.4).astype(np.float32)
            values = values if width else values[:, 0]
            features[key] = values > 0.2 if kind is bool else values
    return features
