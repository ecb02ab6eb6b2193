"""The example robot, against a server, in a simulator."""

import io
import sys
import threading
import urllib.request
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from examples import robot
from examples.live_picture import LivePage, Trace
from examples.robot import LateSource, Played, Show, play
from imagewam_jax.client.broker import ChunkBroker
from imagewam_jax.errors import ConfigError, ServingError
from tests.commands import run
from tests.evaluation.fake_simulator import NAME, FakeSimulator
from tests.evaluation.opengl import require_metaworld
from tests.hosts import ROOT
from tests.serving.robots import FAST, served, tiny_actor


def test_a_robot_plays_through_a_server(tmp_path):
    """In a process of its own: software OpenGL and TensorFlow, which other tests import, crash when
    they share one."""
    require_metaworld()
    picture = tmp_path / "robot.png"
    with served(*tiny_actor(), FAST._replace(buckets=(1,))) as server:
        arguments = [f"--url={server.url}", "--episodes=2", "--hz=200", "--delay-ms=5", "--no-page"]
        more = ["--jitter-ms=5", f"--picture={picture}"]
        printed = run([sys.executable, "-m", "examples.robot", *arguments, *more], ROOT)
    first, second, last = printed.splitlines()
    assert first.startswith("faucet-open 10000: ") and second.startswith("faucet-close 10000: ")
    assert last.endswith(" of 2 succeeded")
    with Image.open(picture) as found:
        assert found.size[0] == 640
    with pytest.raises(ServingError, match="cannot connect"):
        robot.main([*arguments, f"--simulator={NAME}"])


def test_images_of_another_size_are_told():
    with (
        served(*tiny_actor(), FAST._replace(buckets=(1,))) as server,
        pytest.raises(ConfigError, match="the server takes 64 x 64: serve with --image-size=2x2"),
    ):
        robot.main([f"--url={server.url}", f"--simulator={NAME}", "--no-page"])


class Line:
    """Chunks that go forward in the line of `FakeSimulator`."""

    metadata: ClassVar = {
        "image_keys": ["front", "side"],
        "image_resolution": {"front": [2, 2], "side": [2, 2]},
        "state_key": "place",
        "prompt_key": "prompt",
        "action_horizon": 8,
        "action_dim": 1,
        "action_relative": [True],
    }

    def __init__(self):
        self.asked = []

    def infer(self, request):
        self.asked.append(float(request["place"][0]))
        return {"actions": np.ones((8, 1), np.float32)}

    def reset(self):
        pass

    def close(self):
        pass


def test_the_clock_goes_on_while_an_answer_is_awaited():
    """An answer takes as long as three steps, and the robot acts in every one of them."""
    line = Line()
    source = LateSource(line, delay_s=0.06, jitter_s=0.0)
    broker = ChunkBroker(source, mode="aligned", execute_steps=2, control_hz=50)
    show = Show(("x",), "", None)
    show.begin("")
    played = play(FakeSimulator(), broker, source, ("forward", 0), hz=50, show=show)
    broker.close()
    assert isinstance(played, Played) and played.success and played.steps == 10
    assert played.seconds > 9 / 50  # not faster than real time
    assert line.asked[0] == 0 and len(line.asked) < 10
    assert source.arrived >= 3


def test_a_browser_gets_one_picture_after_another():
    trace = Trace(("x", "gripper"))
    images = np.zeros((2, 32, 64, 3), np.uint8)
    with LivePage(0) as page:
        shown = threading.Event()

        def go_on():
            while not shown.wait(0.01):
                trace.add(np.zeros(2), is_new_chunk=False)
                page.show(trace.picture(images, ["a line"]))

        thread = threading.Thread(target=go_on)
        thread.start()
        with urllib.request.urlopen(page.url) as answer:
            assert b"<img src=stream>" in answer.read()
        with urllib.request.urlopen(page.url + "stream") as stream:
            for _ in range(2):
                lines = [stream.readline().strip() for _ in range(4)]
                assert lines[:2] == [b"--frame", b"Content-Type: image/jpeg"]
                size = int(lines[2].removeprefix(b"Content-Length: "))
                picture = Image.open(io.BytesIO(stream.read(size)))
                assert picture.size == (1048, 16 + 8 + 256 + 8 + 2 * 56 + 8)
                assert stream.readline() == b"\r\n"
        shown.set()
        thread.join()


def test_curves_show_the_range_and_where_chunks_began():
    trace = Trace(("x",))
    for step in range(40):
        trace.add(np.array([np.sin(step / 5)]), is_new_chunk=step in (0, 20))
    picture = np.asarray(trace.picture(np.zeros((1, 8, 8, 3), np.uint8), []))
    orange = (np.abs(picture - np.array([0xEA, 0x58, 0x0C])).sum(-1) == 0).any(0).nonzero()[0]
    assert orange.tolist() == [8, 8 + 20 * (640 - 16) // 160]
