"""The general transform, option by option, and rows that rest on it, against examples by hand."""

import numpy as np
import pytest

from imagewam_jax.data.registry import dataset_spec
from imagewam_jax.data.transforms import find_transform
from imagewam_jax.data.transforms.columns import as_stored, columns
from imagewam_jax.errors import DataError
from tests.data.transforms.specs import row

ROLLED = np.float32([0, 0, np.sqrt(0.5), np.sqrt(0.5)])  # 90 degrees about z, (x, y, z, w)


def _standardized(name: str, steps: dict) -> tuple[np.ndarray, np.ndarray]:
    spec = dataset_spec(name)
    return find_transform(spec.transform)(
        {key: np.asarray(value, np.float32) for key, value in steps.items()}, spec
    )


def test_features_side_by_side_as_they_are_stored():
    steps = {
        "move": np.array([[1, 2], [3, 4]], np.float64),
        "grip": np.array([5, 6], np.int64),  # a number per step
        "on": np.array([True, False]),
    }
    spec = row(4, 1, action_keys=("move", "grip", "on"), state_keys=("grip",))
    action, state = as_stored(steps, spec)
    np.testing.assert_array_equal(action, np.float32([[1, 2, 5, 1], [3, 4, 6, 0]]))
    np.testing.assert_array_equal(state, np.float32([[5], [6]]))
    assert action.dtype == state.dtype == np.float32
    action, state = as_stored(steps, row(2, action_keys=("move",)))
    assert state.shape == (2, 0)


def test_features_that_cannot_be_laid_side_by_side():
    steps = {"a": np.array([b"x"], object), "cube": np.zeros((1, 2, 2))}
    with pytest.raises(DataError, match=r"no feature 'b', there are \['a', 'cube'\]"):
        as_stored(steps, row(action_keys=("b",)))
    with pytest.raises(DataError, match=r"'a' is object\[1\], expected numbers"):
        as_stored(steps, row(action_keys=("a",)))
    with pytest.raises(DataError, match=r"'cube' is float64\[1, 2, 2\], expected numbers"):
        as_stored(steps, row(action_keys=("cube",)))
    with pytest.raises(DataError, match="'as_stored' needs action_keys"):
        as_stored(steps, row(action_keys=()))


def test_chosen_columns():
    steps = {"a": np.float32([[0, 1, 2, 3], [4, 5, 6, 7]]), "s": np.float32([[8, 9], [10, 11]])}
    options = {"action_columns": (-1, None, 0), "state_columns": (1,)}
    action, state = columns(steps, row(3, 1, options=options))
    np.testing.assert_array_equal(action, [[3, 0, 0], [7, 0, 4]])
    np.testing.assert_array_equal(state, [[9], [11]])


def test_options_that_cannot_be():
    steps = {"a": np.zeros((2, 4), np.float32), "s": np.zeros((2, 2), np.float32)}
    for options, expected in (
        ({"action_columns": (0, 4, -5)}, r"action_columns asks for \[4, -5\] of 4 columns"),
        ({"gripper": "shut"}, r"gripper is 'shut', expected one of \['as_stored', 'binarise'"),
        ({"rotation": "matrix"}, "rotation is 'matrix', expected one of"),
        ({"rotation": "quaternion"}, "the action with its quaternion has 4 columns"),
        ({"frame": "wrist"}, "the action has 4 columns, expected at least 6"),
    ):
        with pytest.raises(DataError, match=expected):
            columns(steps, row(4, 2, options=options))


def test_the_input_is_left_as_it_was():
    steps = {"a": np.float32([[1, 2, 3, 4, 5, 6, -1]]), "s": np.zeros((1, 6), np.float32)}
    before = steps["a"].copy()
    columns(steps, row(7, 6, options={"gripper": "clip_invert", "frame": "wrist"}))
    np.testing.assert_array_equal(steps["a"], before)


def test_actions_in_the_frame_of_the_hand():
    """The hand is turned by 90 degrees about z: 1 along the base's y is 1 along its x."""
    steps = {
        "a": np.float32([[2, 1, 5, 0.3, 0, 0, 0.75]]),
        "s": np.float32([[9, 9, 9, 0, 0, np.pi / 2]]),
    }
    action, _ = columns(steps, row(7, 6, options={"frame": "wrist", "gripper": "invert"}))
    np.testing.assert_allclose(action, [[1, -2, 5, 0, -0.3, 0, 0.25]], atol=1e-6)


def test_libero():
    action, state = _standardized(
        "libero_object_no_noops",
        {
            "action": [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, -1], [0, 0, 0, 0, 0, 0, 1]],
            "observation/state": np.arange(16).reshape(2, 8),
        },
    )
    expected = np.float32([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1], [0, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(action, expected)
    np.testing.assert_array_equal(state, np.arange(16).reshape(2, 8))


def test_fractal():
    action, state = _standardized(
        "fractal20220817_data",
        {
            "action/world_vector": [[1, 2, 3], [4, 5, 6], [7, 8, 9]],
            "action/rotation_delta": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]],
            "action/gripper_closedness_action": [[0], [1], [0]],
            "observation/base_pose_tool_reached": np.arange(21).reshape(3, 7),
            "observation/gripper_closed": [[0.5], [0.6], [0.7]],
        },
    )
    expected = [
        [1, 2, 3, 0.1, 0.2, 0.3, 1],
        [4, 5, 6, 0.4, 0.5, 0.6, 0],
        [7, 8, 9, 0.7, 0.8, 0.9, 0],
    ]
    np.testing.assert_array_equal(action, np.float32(expected))
    np.testing.assert_array_equal(state[1], np.float32([7, 8, 9, 10, 11, 12, 13, 0.6]))


def test_taco_play():
    action, state = _standardized(
        "taco_play",
        {
            "action/rel_actions_world": [[1, 2, 3, 4, 5, 6, -1], [1, 2, 3, 4, 5, 6, 1]],
            "observation/robot_obs": [np.arange(15), np.arange(15)],
        },
    )
    assert action[:, -1].tolist() == [0, 1]
    assert state[0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_jaco_play():
    action, state = _standardized(
        "jaco_play",
        {
            "action/world_vector": [[1, 2, 3], [4, 5, 6]],
            "action/gripper_closedness_action": [[1], [-1]],
            "observation/end_effector_cartesian_pos": [np.arange(7), np.arange(7)],
        },
    )
    assert action.tolist() == [[1, 2, 3, 0, 0, 0, 0], [4, 5, 6, 0, 0, 0, 1]]
    assert state[0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_cable_routing_has_no_gripper():
    action, _ = _standardized(
        "berkeley_cable_routing",
        {
            "action/world_vector": [[1, 2, 3]],
            "action/rotation_delta": [[4, 5, 6]],
            "observation/robot_state": [np.arange(7)],
        },
    )
    assert action.tolist() == [[1, 2, 3, 4, 5, 6, 0]]


def test_autolab_ur5():
    _, state = _standardized(
        "berkeley_autolab_ur5",
        {
            "action/world_vector": [[1, 2, 3]],
            "action/rotation_delta": [[4, 5, 6]],
            "action/gripper_closedness_action": [0],
            "observation/robot_state": [np.arange(15)],
        },
    )
    assert state.tolist() == [[6, 7, 8, 9, 10, 11, 12, 13]]


def test_toto():
    action, _ = _standardized(
        "toto",
        {
            "action/world_vector": [[1, 2, 3], [1, 2, 3]],
            "action/rotation_delta": [[4, 5, 6], [4, 5, 6]],
            "action/open_gripper": [True, False],
            "observation/state": [np.arange(7), np.arange(7)],
        },
    )
    assert action.tolist() == [[1, 2, 3, 4, 5, 6, 1], [1, 2, 3, 4, 5, 6, 0]]


def test_language_table_is_padded():
    action, state = _standardized(
        "language_table", {"action": [[1, 2]], "observation/effector_translation": [[3, 4]]}
    )
    assert action.tolist() == [[1, 2, 0, 0, 0, 0, 1]] and state.tolist() == [[3, 4]]


def test_hydra():
    action, state = _standardized(
        "stanford_hydra_dataset_converted_externally_to_rlds",
        {"action": [[1, 2, 3, 4, 5, 6, 0.25]], "observation/state": [np.arange(27)]},
    )
    assert action[0, -1] == 0.75
    assert state.tolist() == [[0, 1, 2, 7, 8, 9, 24]]


def test_franka_play():
    action, state = _standardized(
        "nyu_franka_play_dataset_converted_externally_to_rlds",
        {"action": [[*range(13), 1.5, 9]], "observation/state": [np.arange(13)]},
    )
    assert action.tolist() == [[7, 8, 9, 10, 11, 12, 1]]
    assert state.tolist() == [[7, 8, 9, 10, 11, 12]]


def test_furniture_bench():
    action, state = _standardized(
        "furniture_bench_dataset_converted_externally_to_rlds",
        {"action": [[1, 2, 3, *ROLLED, -1]], "observation/state": [np.arange(35)]},
    )
    np.testing.assert_allclose(action, [[1, 2, 3, 0, 0, np.pi / 2, 1]], atol=1e-6)
    assert state.tolist() == [[0, 1, 2, 3, 4, 5, 6, 34]]


def test_pickup_insert():
    action, state = _standardized(
        "iamlab_cmu_pickup_insert_converted_externally_to_rlds",
        {"action": [[1, 2, 3, *ROLLED, 0.5]], "observation/state": [np.arange(20)]},
    )
    np.testing.assert_allclose(action, [[1, 2, 3, 0, 0, np.pi / 2, 0.5]], atol=1e-6)
    assert state.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7]]


def test_bc_z_takes_the_first_of_ten_actions():
    action, state = _standardized(
        "bc_z",
        {
            "action/future/xyz_residual": [np.arange(30)],
            "action/future/axis_angle_residual": [np.arange(100, 130)],
            "action/future/target_close": [[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]],
            "observation/present/xyz": [[1, 2, 3]],
            "observation/present/axis_angle": [[4, 5, 6]],
            "observation/present/sensed_close": [[0.2]],
        },
    )
    assert action.tolist() == [[0, 1, 2, 100, 101, 102, 0]]
    np.testing.assert_array_equal(state, np.float32([[1, 2, 3, 4, 5, 6, 0.2]]))


def test_fanuc_takes_its_gripper_from_the_state():
    action, state = _standardized(
        "berkeley_fanuc_manipulation",
        {"action": [[1, 2, 3, 4, 5, 6]], "observation/state": [[*range(6), 0.25, *range(7, 13)]]},
    )
    assert action.tolist() == [[1, 2, 3, 4, 5, 6, 0.75]]
    assert state.tolist() == [[0, 1, 2, 3, 4, 5, 0.25]]


@pytest.mark.parametrize(
    ("name", "width"),
    [("ucsd_kitchen_dataset_converted_externally_to_rlds", 21), ("cmu_stretch", 4)],
)
def test_the_end_of_the_episode_is_no_action(name, width):
    action, _ = _standardized(
        name, {"action": [np.arange(8)], "observation/state": [np.arange(width)]}
    )
    assert action.tolist() == [[0, 1, 2, 3, 4, 5, 6]]


def test_droid():
    action, state = _standardized(
        "droid",
        {
            "action_dict/cartesian_velocity": [[1, 2, 3, 4, 5, 6]],
            "action_dict/gripper_position": [[0.25]],
            "observation/cartesian_position": [[7, 8, 9, 10, 11, 12]],
            "observation/gripper_position": [[0.5]],
        },
    )
    assert action.tolist() == [[1, 2, 3, 4, 5, 6, 0.75]]
    assert state.tolist() == [[7, 8, 9, 10, 11, 12, 0.5]]
