"""A robot that asks a policy server, in real time, in a simulator of this machine.

    python -m examples.robot --url=ws://127.0.0.1:8000 --mode=rtc_guided --delay-ms=100

The clock goes on while the server computes, as it does for a robot, and answers can be made later
than they are, so that one sees what each way to execute chunks does with a slow network or a large
model. http://127.0.0.1:8001/ shows what the robot sees and does. It needs the simulator, msgpack,
websockets, jaxtyping and Pillow, and neither JAX nor weights.
"""

import argparse
import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from examples.live_picture import LivePage, Trace
from imagewam_jax.client.broker import HELD, ChunkBroker
from imagewam_jax.client.remote import RemotePolicy
from imagewam_jax.client.source import ChunkSource
from imagewam_jax.errors import ConfigError, UserError
from imagewam_jax.evaluation.simulators import make_simulator
from imagewam_jax.evaluation.simulators.base import Observation, Simulator
from imagewam_jax.files import writing
from imagewam_jax.wire import protocol


class LateSource:
    """A source of chunks whose answers come later, each by another time.

    arrived: answers so far.
    """

    def __init__(self, source: ChunkSource, delay_s: float, jitter_s: float, seed: int = 0):
        """jitter_s: up to so much more than `delay_s`, at random, the same with each seed."""
        self.metadata = source.metadata
        self.arrived = 0
        self._source, self._delay_s, self._jitter_s = source, delay_s, jitter_s
        self._random = np.random.default_rng(seed)

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reply = self._source.infer(request)
        time.sleep(self._delay_s + self._jitter_s * self._random.random())
        self.arrived += 1
        return reply

    def reset(self) -> None:
        self._source.reset()

    def close(self) -> None:
        self._source.close()


class Played(NamedTuple):
    """How an episode went. held: why the robot stopped, "" if it did not. overruns: steps that took
    longer than there was time, by the simulator and the picture alone."""

    success: bool
    steps: int
    seconds: float
    overruns: int
    held: str


def check_images(observation: Observation, about: Mapping[str, Any]) -> None:
    """ConfigError: the simulator's images are not of the size that the server takes."""
    rows, columns = next(iter(about["image_resolution"].values()))
    height, width = observation.images_nhwc.shape[1:3]
    if (height, width) != (rows, columns):
        raise ConfigError(
            f"the simulator draws {height} x {width}, the server takes {rows} x {columns}: serve "
            f"with --image-size={height}x{width}"
        )


def request_of(observation: Observation, about: Mapping[str, Any]) -> dict[str, Any]:
    """What a server is told of an observation. `about`: its metadata."""
    request = dict(zip(about["image_keys"], observation.images_nhwc, strict=True))
    if about["state_key"]:
        request[about["state_key"]] = observation.state
    return request | {about["prompt_key"]: observation.instruction}


def play(
    simulator: Simulator,
    broker: ChunkBroker,
    source: LateSource,
    start: tuple[str, int],
    *,
    hz: float,
    show: "Show",
) -> Played:
    """Plays one episode, `hz` steps per second. The robot waits for its first action alone."""
    task, seed = start
    observation = simulator.reset(task, seed)
    check_images(observation, source.metadata)
    begun = tick = None
    overruns = steps = 0
    for steps in range(1, simulator.spec.max_steps[task] + 1):
        reply = broker.infer(request_of(observation, source.metadata))
        if begun is None:
            begun = tick = time.monotonic()
        if reply[HELD]:
            return Played(False, steps - 1, time.monotonic() - begun, overruns, reply[HELD])
        action = np.clip(reply["actions"], simulator.spec.action_low, simulator.spec.action_high)
        success = simulator.step(action, look=True)
        observation = simulator.observe()
        show.step(observation, action, source.arrived, broker)
        if success:
            return Played(True, steps, time.monotonic() - begun, overruns, "")
        tick += 1 / hz
        left = tick - time.monotonic()
        if left < 0:  # a real robot would not wait for its simulator
            overruns, tick = overruns + 1, time.monotonic()
        time.sleep(max(left, 0))
    return Played(False, steps, time.monotonic() - begun, overruns, "")


class Show:
    """Keeps what was done, and puts a picture of it on the page, if there is one."""

    def __init__(self, names: tuple[str, ...], title: str, page: LivePage | None):
        self._trace, self._title, self._page = Trace(names), title, page
        self._arrived = 0
        self._images: UInt8[np.ndarray, "n h w 3"] | None = None

    def begin(self, what: str) -> None:
        """Another episode, and what people are told of it."""
        self._what = what
        self._trace.clear()

    def step(
        self,
        observation: Observation,
        action: Float[np.ndarray, " a"],
        arrived: int,
        broker: ChunkBroker,
    ) -> None:
        self._trace.add(action, is_new_chunk=arrived != self._arrived)
        self._arrived, self._images = arrived, observation.images_nhwc
        if self._page is not None:
            lines = [
                self._title,
                self._what,
                f"{observation.instruction}   answers take {broker.delay_steps} steps"
                f"   waited for: {broker.fallbacks}",
            ]
            self._page.show(self._trace.picture(observation.images_nhwc, lines))

    def save(self, file: Path) -> None:
        """Writes a picture of the last step, if there was one."""
        if self._images is not None:
            with writing(file):
                self._trace.picture(self._images, [self._title, self._what]).save(file)


@contextlib.contextmanager
def _page(port: int | None) -> Iterator[LivePage | None]:
    if port is None:
        yield None
        return
    with LivePage(port) as page:
        print(f"watch it at {page.url}")
        yield page


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    simulator = make_simulator(given.simulator)
    remote = RemotePolicy(given.url, given.token, reply_seconds=given.reply_seconds)
    source = LateSource(remote, given.delay_ms / 1000, given.jitter_ms / 1000)
    tasks = list(simulator.spec.instructions)
    with _page(given.port) as page, contextlib.closing(remote):
        hz = given.hz or remote.metadata["control_hz"]
        broker = ChunkBroker(
            source, mode=given.mode, execute_steps=given.execute_steps, control_hz=hz
        )
        title = (
            f"{given.mode}, {given.delay_ms:g} ms later, {given.jitter_ms:g} ms jitter, {hz:g} Hz"
        )
        show = Show(simulator.spec.action_names, title, page)
        results = []
        for episode in range(given.episodes):
            start = tasks[episode % len(tasks)], given.seed + episode // len(tasks)
            show.begin(f"episode {episode + 1} of {given.episodes}: {start[0]}")
            results.append(play(simulator, broker, source, start, hz=hz, show=show))
            print(_line(start, results[-1], broker), flush=True)
            broker.reset()
        if given.picture is not None:
            show.save(given.picture)
        broker.close()
    print(f"{sum(each.success for each in results)} of {len(results)} succeeded")
    return 0


def _line(start: tuple[str, int], played: Played, broker: ChunkBroker) -> str:
    end = "success" if played.success else f"held: {played.held}" if played.held else "failure"
    return (
        f"{start[0]} {start[1]}: {end} after {played.steps} steps, {played.seconds:.1f} s; answers "
        f"took {broker.delay_steps} steps, {broker.fallbacks} were waited for; "
        f"{played.overruns} steps took too long"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m examples.robot",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="ws://127.0.0.1:8000", help="of the server")
    parser.add_argument("--token", help="if the server wants one")
    parser.add_argument("--simulator", default="metaworld_faucet", help="its name, or module:Class")
    parser.add_argument(
        "--mode",
        default="aligned",
        choices=[*protocol.MODES, *protocol.REAL_TIME_MODES],
        help="how chunks are executed; default: aligned",
    )
    parser.add_argument("--execute-steps", type=int, help="default: what the server says")
    parser.add_argument("--hz", type=float, help="default: control_hz of the policy's data")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="added to every answer")
    parser.add_argument(
        "--jitter-ms", type=float, default=0.0, help="up to so much more, at random"
    )
    parser.add_argument("--reply-seconds", type=float, default=10.0, help="to wait for an answer")
    parser.add_argument("--episodes", type=int, default=4, help="of all tasks in turn")
    parser.add_argument("--seed", type=int, default=10_000, help="of the first start")
    parser.add_argument("--port", type=int, default=8001, help="of the live picture; 0: a free one")
    parser.add_argument(
        "--no-page", dest="port", action="store_const", const=None, help="no live picture"
    )
    parser.add_argument("--picture", type=Path, help="a file for the last picture")
    return parser


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except UserError as error:
        raise SystemExit(str(error)) from None
