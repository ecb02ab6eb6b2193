"""Film strips and videos: which episodes are shown, what is in them, and what a resume finds."""

import io
import tracemalloc

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from imagewam_jax.evaluation import films
from imagewam_jax.evaluation.films import Films, film_strip, film_strips, videos, write_video
from imagewam_jax.evaluation.journal import Ended
from imagewam_jax.evaluation.simulators.base import Observation

EPISODES = [("push", 0), ("pull", 0), ("push", 1), ("pull", 1), ("push", 2), ("pull", 2)]
SUCCESS = [True, False, False, False, True, True]
SHOWN = {0: "success-push", 1: "failure-pull", 2: "failure-push", 5: "success-pull"}


def play(recorder: Films, episodes) -> None:
    """Plays episodes, all at once, to their ends in the order given; each shows its number."""
    numbers = list(episodes)
    for episode in numbers:
        recorder.began(episode, EPISODES[episode], seen(episode, 0))
    for step in range(1, 4):
        for episode in numbers:
            recorder.acted(episode, np.zeros((2, 1)), [seen(episode, step)])
    for episode in numbers:
        recorder.ended(episode, Ended(SUCCESS[episode], 6))


def seen(episode: int, step: int) -> Observation:
    """Two cameras; the second one is brighter."""
    values = 20 * episode + 5 * step + np.array([0, 100])
    images = np.broadcast_to(values[:, None, None, None], (2, 16, 17, 3)).astype(np.uint8)
    return Observation(images, np.zeros(1, np.float32), "go")


def open_films(folder, **options) -> Films:
    return Films(folder, "the policy", EPISODES, frames_per_second=2.5, strips=2, **options)


def shown(folder) -> dict[int, str]:
    found = videos(folder, "the policy")
    return {e: path.stem.removeprefix(f"{e:05d}-") for e, path in found.items()}


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (3, 4, 0, 5, 2, 1)])
def test_the_first_of_each_is_shown_whichever_ends_first(tmp_path, order):
    with open_films(tmp_path) as recorder:
        play(recorder, order)
    assert shown(tmp_path) == SHOWN
    assert set(film_strips(tmp_path, "the policy")) == {0, 1}


def test_a_video_has_what_was_seen_at_its_time(tmp_path):
    with open_films(tmp_path) as recorder:
        play(recorder, range(6))
    with av.open(str(videos(tmp_path, "the policy")[5])) as video:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in video.decode(video=0)]
    assert [time for time, _ in frames] == pytest.approx([0, 0.4, 0.8, 1.2])
    for step, (_, image) in enumerate(frames):
        assert image.shape == (16, 34, 3)  # the cameras side by side
        np.testing.assert_allclose(image[:, :15], 100 + 5 * step, atol=4)
        np.testing.assert_allclose(image[:, 19:], 200 + 5 * step, atol=4)
    strip = np.asarray(Image.open(io.BytesIO(film_strips(tmp_path, "the policy")[1])))
    # Four frames, one camera above the other, twice as large, since they are small.
    assert strip.shape == (2 * 2 * 16, 4 * 2 * 17, 3)
    assert (strip[0, ::34, 0] == [20, 25, 30, 35]).all() and strip[-1, -1, 0] == 135


def test_what_was_filmed_is_kept_when_it_is_resumed(tmp_path):
    with open_films(tmp_path) as recorder:
        play(recorder, (4, 3, 1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert shown(tmp_path) == {1: "failure-pull", 4: "success-push"}
    ended = {episode: Ended(SUCCESS[episode], 6) for episode in (1, 3, 4)}
    with open_films(tmp_path, ended=ended) as recorder:
        assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
        play(recorder, (0, 2, 5))
    assert shown(tmp_path) == SHOWN
    assert set(film_strips(tmp_path, "the policy")) == {0, 1}
    # Of another evaluation, or ended after the last line that was noted, or half written.
    (tmp_path / "the-policy" / ".00002-failure-push.mp4.partial-host-1").touch()
    with open_films(tmp_path, ended={0: Ended(True, 6), 1: Ended(False, 6)}):
        assert shown(tmp_path) == {0: "success-push", 1: "failure-pull"}
        assert len(list(tmp_path.rglob("*.*"))) == 2 + 2
    with open_films(tmp_path):
        assert not list(tmp_path.rglob("*.*"))


def test_without_an_encoder_a_video_is_a_gif(tmp_path, monkeypatch):
    monkeypatch.setattr(films, "find_spec", lambda name: None)
    images = [np.full((8, 8, 3), 60 * step, np.uint8) for step in range(4)]
    path = write_video(tmp_path / "name-1.5", images, 2.5)
    assert path.name == "name-1.5.gif"
    with Image.open(path) as gif:
        frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(gif)]
        assert gif.info["duration"] == 400
    np.testing.assert_allclose(frames, images, atol=1)


def test_frames_wait_on_disk(tmp_path):
    """Filming 100 decisions of a long episode takes the memory of a few."""
    image = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3)).astype(np.uint8)
    observation = Observation(image, np.zeros(1, np.float32), "go")
    tracemalloc.start()
    with open_films(tmp_path) as recorder:
        recorder.began(5, EPISODES[5], observation)
        for _ in range(100):
            recorder.acted(5, np.zeros((2, 1)), [observation])
        recorder.ended(5, Ended(True, 200))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * image.nbytes
    with av.open(str(videos(tmp_path, "the policy")[5])) as video:
        assert sum(1 for _ in video.decode(video=0)) == 101


def test_film_strips_have_the_first_and_the_last_frame():
    frames = np.arange(25, dtype=np.uint8)[:, None, None, None, None]
    frames = list(frames * np.ones((1, 1, 4, 4, 3), np.uint8))
    strip = np.asarray(Image.open(io.BytesIO(film_strip(frames))))
    assert strip.shape == (8, 80, 3)
    assert (strip[0, 0] == 0).all() and (strip[0, -1] == 24).all()
    assert np.asarray(Image.open(io.BytesIO(film_strip(frames[:3])))).shape == (8, 24, 3)
