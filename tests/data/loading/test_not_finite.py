"""NaN, infinite numbers and images of no bytes among the steps of a dataset."""

import logging

import numpy as np
import pytest
import simplejpeg

from imagewam_jax.data.datasets import open_data
from imagewam_jax.data.statistics.exact import dataset_statistics
from imagewam_jax.data.statistics.official import standardized_episodes
from imagewam_jax.errors import BadFrameError, DataError
from tests.data.write_records import bytes_list, float_list, made_section, write_set

STEPS = (9, 12, 7, 5)
HORIZON, STRIDE = 3, 2
BAD_ACTIONS, BAD_STATES = {(1, 4), (2, 6)}, {(0, 2)}
NO_WRIST, NO_IMAGE = {(0, 0), (0, 5)}, {(0, 5)}
SIZES = {"image": (16, 24), "wrist": (8, 16)}


def jpeg(key, episode, step):
    value = 40 + 60 * episode + 5 * step
    return simplejpeg.encode_jpeg(np.full((*SIZES[key], 3), value, np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four episodes; two actions and a state are not finite, and images have no bytes."""
    episodes = []
    for e, steps in enumerate(STEPS):
        actions = np.arange(2.0 * steps).reshape(steps, 2) + 100 * e
        states = np.arange(float(steps))
        for t in range(steps):
            actions[t, 1] = np.nan if (e, t) in BAD_ACTIONS else actions[t, 1]
            states[t] = -np.inf if (e, t) in BAD_STATES else states[t]
        images = [b"" if (e, t) in NO_IMAGE else jpeg("image", e, t) for t in range(steps)]
        wrist = [b"" if (e, t) in NO_WRIST else jpeg("wrist", e, t) for t in range(steps)]
        if e == 2:
            wrist = [b""] * steps
        episodes.append(
            {
                "steps/action": float_list(*actions.ravel()),
                "steps/state": float_list(*states),
                "steps/image": bytes_list(*images),
                "steps/wrist": bytes_list(*wrist),
            }
        )
    number = {"tensor": {"dtype": "float32", "shape": {}}}
    image = {"image": {"dtype": "uint8", "shape": {"dimensions": ["-1", "-1", "3"]}}}
    features = {
        "action": {"tensor": {"dtype": "float32", "shape": {"dimensions": ["2"]}}},
        "state": number,
        "image": image,
        "wrist": image,
    }
    return write_set(tmp_path_factory.mktemp("set"), features, [episodes])


@pytest.fixture(scope="module")
def open_set(folder):
    def open_set(not_finite="error", cameras=("primary", "wrist")):
        both = {"primary": "image", "wrist": "wrist"}
        section = made_section(folder, both, cameras=cameras, not_finite=not_finite, stride=STRIDE)
        return open_data(section, horizon=HORIZON, action_dim=2, state_dim=1).datasets[0]

    return open_set


def frame(episode, step):
    return sum(STEPS[:episode]) + step


def finite_starts():
    """Steps t at which the state and the chunk t, t + 2, t + 4 are finite; beyond the end of an
    episode a chunk repeats its last step."""
    for e, steps in enumerate(STEPS):
        for t in range(steps):
            chunk = {(e, min(t + STRIDE * i, steps - 1)) for i in range(HORIZON)}
            if not chunk & BAD_ACTIONS and (e, t) not in BAD_STATES:
                yield frame(e, t)


@pytest.mark.parametrize(
    ("split", "complaint"),
    [
        (
            "train",
            "3 steps in 3 of 4 episodes .* first split 'train', episode 0, step 2 .*: state ",
        ),
        ("train", r"'a' is -inf, from \['state'\]; leave out the samples .*=\"drop_steps\", or"),
        (
            "train[1:2]",
            r"1 steps in 1 of 1 episodes .*episode 1, step 4 .*: action 'y' is nan, from",
        ),
    ],
)
def test_they_are_refused(open_set, split, complaint):
    dataset = open_set()
    for use in (dataset.start_frames, dataset.reader, lambda s: dataset_statistics([dataset], s)):
        with pytest.raises(DataError, match=complaint):
            use(split)


def test_samples_that_touch_them_are_left_out(open_set, caplog):
    dataset = open_set("drop_steps")
    with caplog.at_level(logging.WARNING):
        frames = dataset.start_frames("train")
    assert frames.tolist() == list(finite_starts())
    assert "3 steps in 3 of 4 episodes" in caplog.text
    left_out = sum(STEPS) - len(frames)
    assert f"{left_out} of 33 samples of 'train' touch numbers that are not finite" in caplog.text
    reader = dataset.reader("train")
    good = [f for f in frames if f not in (frame(0, 5), frame(0, 0), frame(0, 1))]
    batch = reader.read(np.array(good))
    assert np.isfinite(batch["actions"]).all() and np.isfinite(batch["proprio"]).all()


def test_statistics_leave_out_the_steps(open_set):
    found = dataset_statistics([open_set("drop_steps")], "train")
    assert found["source"]["frames"] == 30 and found["source"]["parts"]["made"]["not_finite"] == 3
    kept = [
        2.0 * t + 100 * e
        for e, steps in enumerate(STEPS)
        for t in range(steps)
        if (e, t) not in BAD_ACTIONS | BAD_STATES
    ]
    np.testing.assert_allclose(found["action"]["mean"], [np.mean(kept), np.mean(kept) + 1])
    with pytest.raises(DataError, match=r'episode 1, step 0 .*data.not_finite="drop_episodes"'):
        selected = open_set("drop_steps").select("train[1:]")
        list(standardized_episodes(selected.split, selected.standardized, selected.episodes))


def test_episodes_that_hold_them_are_left_out(open_set):
    dataset = open_set("drop_episodes")
    assert dataset.episodes("train").tolist() == [3]
    assert dataset.start_frames("train").tolist() == [frame(3, t) for t in range(5)]
    found = dataset_statistics([dataset], "train")
    assert found["source"]["episodes"] == 1 and found["action"]["max"].tolist() == [308, 309]
    with pytest.raises(DataError, match=r'3 of 3 episodes .*"drop_episodes" leaves no episode'):
        dataset.start_frames("train[:3]")
    with pytest.raises(DataError, match=r"data.not_finite is 'drop', expected one of"):
        open_set("drop").start_frames("train")


def test_an_image_of_no_bytes_is_black(open_set, caplog):
    """As that of a camera that is missing; its size is that of the episode's images."""
    dataset = open_set("drop_steps")
    with caplog.at_level(logging.WARNING):
        dataset.start_frames("train[0:1]")
    assert "camera 'wrist' has no image at 2 of 8 steps of 'train[0:1]'" in caplog.text
    reader = dataset.reader("train")
    batch = reader.read(np.array([frame(0, 0), frame(2, 0)]))
    assert batch["image_size"].tolist() == [[[16, 24], [8, 16]], [[16, 24], [16, 24]]]
    current, target = batch["images"][0, 1]
    assert not current.any()
    np.testing.assert_array_equal(target[:8, :16], simplejpeg.decode_jpeg(jpeg("wrist", 0, 6)))
    assert not batch["images"][1, 1].any() and batch["images"][1, 0].any()
    with pytest.raises(BadFrameError, match=r"episode 0, step 5 .*no bytes, and no other camera"):
        reader.read(np.array([frame(0, 5)]))
    with pytest.raises(BadFrameError, match=r"'wrist' in .*episode 2, step 0 .*: it has no bytes"):
        open_set("drop_steps", cameras=("wrist",)).reader("train").read(np.array([frame(2, 0)]))
