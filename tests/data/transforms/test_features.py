"""The features that transforms read, and features of unusual form."""

import zlib

import numpy as np
import pytest

from imagewam_jax.data.registry import dataset_spec
from imagewam_jax.data.transforms import EpisodeFeatures
from imagewam_jax.data.transforms.columns import kuka
from imagewam_jax.errors import DataError


class Counted:
    """A column that counts how often it is read."""

    def __init__(self, values):
        self.values, self.reads = np.asarray(values), 0

    def __getitem__(self, rows):
        self.reads += 1
        return self.values[rows]


def test_features_of_an_episode_are_read_when_asked_for():
    action, unused = Counted(np.arange(10)), Counted(np.arange(10))
    path = Counted(np.array([b"a", b"b", b"c"], object))
    features = EpisodeFeatures(
        {"action": action, "unused": unused}, {"path": path}, slice(4, 7), 1, "set d, episode 1"
    )
    assert "action" in features and "path" in features and "x" not in features
    assert set(features) == {"action", "unused", "path"} and len(features) == 3
    assert action.reads == 0
    assert features["action"].tolist() == features["action"].tolist() == [4, 5, 6]
    assert (action.reads, unused.reads) == (1, 0)
    assert features["path"].tolist() == [b"b", b"b", b"b"]  # its own, once for each step
    with pytest.raises(DataError, match=r"set d, episode 1: no feature 'x', there are \['action'"):
        features["x"]


def _kuka_steps(state, gripper) -> dict:
    return {
        "action/world_vector": np.float32([[1, 2, 3], [4, 5, 6]]),
        "action/rotation_delta": np.float32([[0, 0, 7], [0, 0, 8]]),
        "action/gripper_closedness_action": np.float32([[0], [1]]),
        "observation/clip_function_input/base_pose_tool_reached": state,
        "observation/gripper_closed": gripper,
    }


def test_kuka_with_plain_and_with_compressed_states():
    poses, gripper = np.arange(14, dtype=np.float32).reshape(2, 7), np.float32([[0.5], [1]])
    spec = dataset_spec("kuka")
    plain = kuka(_kuka_steps(poses, gripper), spec)
    assert plain[0].tolist() == [[1, 2, 3, 0, 0, 7, 1], [4, 5, 6, 0, 0, 8, 0]]
    assert plain[1].tolist() == [[0, 1, 2, 3, 4, 5, 6, 0.5], [7, 8, 9, 10, 11, 12, 13, 1]]
    packed = [
        np.array([zlib.compress(step.tobytes()) for step in values], object)
        for values in (poses, gripper)
    ]
    for got, expected in zip(kuka(_kuka_steps(*packed), spec), plain, strict=True):
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(DataError, match="'observation/gripper_closed' is not zlib-compressed"):
        kuka(_kuka_steps(poses, np.array([b"no", b"no"], object)), spec)
