"""Chunks, targets and episode ends against samples made with the transformations of `rlds`."""

import dataclasses
import importlib.util
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from imagewam_jax.data.index.dataset_index import default_index_dir
from imagewam_jax.data.loading.samples import SampleReader
from imagewam_jax.data.loading.start_frames import find_start_frames
from imagewam_jax.data.transforms import transform
from imagewam_jax.data.transforms.standardize import standardize
from tests.data.toy import TOY, TOY_SAMPLE


@transform(version=1)
def truncated_after_a_large_state(steps, spec):
    """The episode up to the first step whose state begins with a number above 1."""
    action, state = steps["action"], steps["observation/state"]
    ends = np.flatnonzero(state[:, 0] > 1)
    length = ends[0] + 1 if len(ends) else len(state)
    return action[:length], state[:length]


@pytest.fixture(scope="module")
def expected(toy, tmp_path_factory):
    """The samples that read_with_rlds.py makes of the set, in a process of its own."""
    if importlib.util.find_spec("rlds") is None:  # to import it would import TensorFlow
        pytest.skip("rlds, of the extra tfds, is not installed")
    file = tmp_path_factory.mktemp("rlds") / "samples.pickle"
    script = Path(__file__).parents[1] / "read_with_rlds.py"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, script, toy.dataset_dir, file]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return pickle.loads(file.read_bytes())


@pytest.mark.parametrize(
    ("horizon", "stride", "truncated"), [(16, 1, False), (5, 8, False), (4, 3, True)]
)
def test_every_sample_is_what_rlds_makes(toy, toy_index, expected, horizon, stride, truncated):
    name = f"{__name__}:{truncated_after_a_large_state.function.__name__}"
    spec = dataclasses.replace(TOY, transform=name) if truncated else TOY
    standardized = standardize(toy_index, spec, default_index_dir(toy.dataset_dir), progress=False)
    split, episodes = toy_index.split("train"), expected[horizon, stride, truncated]
    steps = [len(episode["actions"]) for episode in episodes]
    assert standardized.splits["train"].episode_steps.tolist() == steps
    assert (sum(steps) < split.num_frames) == truncated
    start_frames = find_start_frames(split, standardized.splits["train"])
    starts = np.repeat(split.episode_start[:-1], steps)
    assert start_frames.tolist() == (starts + np.concatenate([*map(np.arange, steps)])).tolist()
    sample = dataclasses.replace(TOY_SAMPLE, horizon=horizon, stride=stride)
    batch = SampleReader(split, standardized.splits["train"], spec, sample).read(start_frames)
    for key, field in (
        ("actions", "actions"),
        ("action_is_pad", "action_is_pad"),
        ("target_is_pad", "target_is_pad"),
        ("state", "proprio"),
    ):
        values = [value for episode in episodes for value in episode[key]]
        np.testing.assert_array_equal(batch[field], values, err_msg=key)
    assert batch["action_is_pad"].any() and batch["target_is_pad"].any()
    for moment, key in enumerate(("image", "target")):
        for camera, (_, stored) in enumerate(TOY.cameras):
            name = stored.key.removeprefix("observation/")
            images = [image[name] for episode in episodes for image in episode[key]]
            for row, encoded in enumerate(images):
                found = batch["images"][row, camera, moment]
                np.testing.assert_array_equal(found, simplejpeg.decode_jpeg(encoded))
