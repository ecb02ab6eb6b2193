"""Frames of a video by number: forwards, backwards, over keyframes, in three ways of encoding."""

import numpy as np
import pytest

from imagewam_jax.data.tools.lerobot.video import VideoFrames
from imagewam_jax.errors import DataError
from tests.data.tools import write_lerobot as lerobot

FRAMES = 240
SEEKABLE = ("libx264", {"crf": "12", "bf": "3", "g": "20", "sc_threshold": "0"}, "yuv420p")
# Frames before a keyframe lean on frames after it.
OPEN_GROUPS = (
    "libx264",
    {"crf": "12", "bf": "3", "g": "20", "x264-params": "open-gop=1"},
    "yuv420p",
)
ENCODINGS = {
    "one keyframe": lerobot.REORDERED,
    "keyframes": SEEKABLE,
    "open groups": OPEN_GROUPS,
    "av1": lerobot.AV1,
}


@pytest.fixture(scope="module", params=sorted(ENCODINGS))
def video(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "file.mp4"
    lerobot.write_video(path, range(FRAMES), ENCODINGS[request.param])
    return path


def numbers(frames):
    return [lerobot.number_of(frame.to_ndarray(format="rgb24")) for frame in frames]


def test_any_range_in_any_order(video):
    frames = VideoFrames(video)
    assert len(frames) == FRAMES
    ranges = [(0, 5), (5, 3), (10, 1), (200, 40), (199, 2), (0, 1), (81, 3), (80, 1), (100, 60)]
    for first, count in ranges:
        assert numbers(frames.frames(first, count)) == list(range(first, first + count))
    frames.close()


def test_every_frame_first_thing(video):
    for first in (1, 64, 65, 79, 80, 81, 160, 239):
        assert numbers(VideoFrames(video).frames(first, 1)) == [first]


def test_one_pass_decodes_each_frame_once(video, monkeypatch):
    frames = VideoFrames(video)
    opened = []
    monkeypatch.setattr(frames, "_open", lambda opening=frames._open: (opened.append(1), opening()))
    for first in range(0, FRAMES, 30):
        assert len(numbers(frames.frames(first, 30))) == 30
    assert len(opened) == 1


def test_episodes_are_found_by_time(video):
    frames = VideoFrames(video)
    assert frames.find(0.0, FRAMES, lerobot.FPS, 0) == 0
    assert frames.find(12.3 + 0.02, 7, lerobot.FPS, 3) == 123
    assert frames.find(12.3 - 0.02, 7, lerobot.FPS, 3) == 123
    with pytest.raises(DataError, match=r"frame 0 of episode 3 is expected at 12\.3300 s"):
        frames.find(12.33, 7, lerobot.FPS, 3)
    with pytest.raises(DataError, match=r"no frame 1 of 2, expected at 24\.0000 s; it has 240"):
        frames.find(23.9, 2, lerobot.FPS, 5)
    with pytest.raises(DataError, match=r"frame 0 of episode 0 is expected at -0\.1000 s"):
        frames.find(-0.1, 2, lerobot.FPS, 0)


def test_a_video_twice_as_fast_is_not_thinned(video):
    with pytest.raises(DataError, match="frames 0 and 1 of episode 0 are 2 frames apart"):
        VideoFrames(video).find(0.0, 10, lerobot.FPS / 2, 0)


def test_a_video_half_as_fast_is_not_repeated(video):
    with pytest.raises(DataError, match=r"frame 1 of episode 0 is expected at 0\.0500 s"):
        VideoFrames(video).find(0.0, 10, lerobot.FPS * 2, 0)


def test_damage_is_found(video):
    data = bytearray(video.read_bytes())
    start, stop = len(data) // 3, len(data) * 2 // 3
    data[start:stop] = np.random.default_rng(0).bytes(stop - start)
    damaged = video.with_name("damaged.mp4")
    damaged.write_bytes(data)
    with pytest.raises(DataError, match=r"damaged\.mp4"):
        numbers(VideoFrames(damaged).frames(0, FRAMES))
