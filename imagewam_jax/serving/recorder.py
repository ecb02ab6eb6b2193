"""`imagewam serve --record`: what robots see and are told to do, as episodes.

See docs/serving.md. An episode goes from one reset of a session to the
next, or to its end. Requests and what is only observed between them are its steps; the action of
each is that which the chunk before has for it. Serving never waits for a disk: a thread of its own
encodes and writes, and where it cannot keep up, steps are left out and counted. An episode is
written when it has ended, or is too long.
"""

import contextlib
import dataclasses
import datetime
import logging
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from prometheus_client import Counter

from imagewam_jax.data.tools import rollouts
from imagewam_jax.data.tools.rollouts import Feature
from imagewam_jax.errors import ConfigError
from imagewam_jax.files import lock_beside, only_writer, writing
from imagewam_jax.serving.acting import Chunk, Row
from imagewam_jax.serving.contract import Contract
from imagewam_jax.serving.requests import SEEDS, Request

_LOG = logging.getLogger(__name__)
WAITING_STEPS = 256  # that the disk may be behind
LONGEST_BYTES = 2**26  # of an episode; what follows is another, with the next `part`
_NO_IMAGES = np.zeros((0, 0, 0, 3), np.uint8)
_ABOUT = "What robots saw and were told to do by a policy server: see episode_metadata."
_EPISODE = {
    "session": Feature("text", doc="The robot: its address, and the name that it gives itself."),
    "client": Feature("text", doc="Of its token; empty where the server asks for none."),
    "policy": Feature("text", doc="A hash over the checksums of its checkpoint."),
    "policy_step": Feature("int64", doc="Training steps of the checkpoint."),
    "began": Feature("text", doc="When its first step came, ISO 8601, UTC."),
    "part": Feature("int64", doc="From 0; more than one where it was too long for one."),
    "chunks": Feature("int64", doc="Steps that were answered; the others were only observed."),
    "success": Feature("int64", doc="-1: a server does not know."),
    "control_hz": Feature("float32", doc="Of the policy's dataset; 0: unknown."),
}


class _Step(NamedTuple):
    """What one message adds to an episode. row: of the chunk, whose action is that of this step."""

    images: UInt8[np.ndarray, "camera h w 3"]
    state: Float32[np.ndarray, " p"]
    prompt: str
    step: int
    chunk: Float[np.ndarray, "s a"]
    chunk_id: int
    row: int
    seed: tuple[int, ...]
    delay: int


@dataclasses.dataclass
class _Open:
    """An episode that has not ended."""

    began: str
    images: list[list[bytes]]  # [step][camera]
    steps: list[_Step]
    part: int = 0
    bytes: int = 0


class Recorder:
    """Writes the episodes of all sessions of one server. Its thread ends with `close`."""

    def __init__(self, folder: Path, recording: rollouts.Recording, dropped: Counter):
        """dropped: counts steps that are left out."""
        self._folder, self._recording, self._dropped = folder, recording, dropped
        self._number = max(rollouts.recorded_episodes(folder), default=-1) + 1
        self._waiting: queue.SimpleQueue[tuple[SessionRecorder, _Step | None] | None]
        self._waiting = queue.SimpleQueue()
        self._open: dict[SessionRecorder, _Open] = {}
        self._has_failed = False
        self._thread = threading.Thread(target=self._write_all, name="recorder", daemon=True)
        self._thread.start()

    def session(self, session: str, client: str) -> "SessionRecorder":
        """What records a robot from now on."""
        return SessionRecorder(self, session, client)

    def close(self) -> None:
        """Waits until everything that came before is written, and what has not ended, too."""
        self._waiting.put(None)
        self._thread.join()

    def add(self, session: "SessionRecorder", step: _Step | None) -> None:
        """A step of a session; None: its episode has ended."""
        if step is not None and (self._has_failed or self._waiting.qsize() >= WAITING_STEPS):
            self._dropped.inc()
        else:
            self._waiting.put((session, step))

    def _write_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            self._take(*item)
        for session in list(self._open):
            self._take(session, None)

    def _take(self, session: "SessionRecorder", step: _Step | None) -> None:
        try:
            if step is not None:
                self._append(session, step)
            elif (episode := self._open.pop(session, None)) is not None:
                self._write(session, episode)
        except Exception as error:  # robots go on; what has been written stays
            if not self._has_failed:
                _LOG.error("nothing more is recorded: %s", error)
            self._has_failed = True

    def _append(self, session: "SessionRecorder", step: _Step) -> None:
        episode = self._open.get(session)
        if episode is None:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            episode = self._open[session] = _Open(now, [], [])
        files = [rollouts.jpeg_file(image) for image in step.images]
        episode.images.append(files)
        episode.steps.append(step._replace(images=_NO_IMAGES))
        episode.bytes += sum(map(len, files)) + step.chunk.nbytes
        if episode.bytes >= LONGEST_BYTES:
            self._write(session, episode)
            self._open[session] = _Open(episode.began, [], [], episode.part + 1)

    def _write(self, session: "SessionRecorder", episode: _Open) -> None:
        """Nothing, where a part has ended at the end of its episode."""
        steps, identity = episode.steps, self._recording.identity
        if not steps:
            return
        recorded = rollouts.RecordedEpisode(
            images={
                key: [files[camera] for files in episode.images]
                for camera, key in enumerate(self._recording.row["cameras"].values())
            },
            states=np.stack([step.state for step in steps]),
            actions=np.stack([step.chunk[step.row] for step in steps]).astype(np.float32),
            instructions=[step.prompt for step in steps],
            success=False,
            steps={
                "chunk": np.stack([step.chunk for step in steps]).astype(np.float32),
                "chunk_id": np.array([step.chunk_id for step in steps]),
                "chunk_row": np.array([step.row for step in steps]),
                "seed": np.array([(*s.seed, *[-1] * (SEEDS - len(s.seed))) for s in steps]),
                "delay": np.array([step.delay for step in steps]),
                "step": np.array([step.step for step in steps]),
            },
            episode={
                "session": session.session,
                "client": session.client,
                "policy": identity["policy"],
                "policy_step": identity["policy_step"],
                "began": episode.began,
                "part": episode.part,
                "chunks": len({step.chunk_id for step in steps}),
                "success": -1,
                "control_hz": self._recording.row["control_hz"] or 0.0,
            },
        )
        with writing(self._folder):
            rollouts.write_episode(self._folder, self._number, recorded)
        self._number += 1


class SessionRecorder:
    """Says which action of which chunk belongs to what one robot sees."""

    def __init__(self, recorder: Recorder, session: str, client: str):
        self.session, self.client = session, client
        self._recorder = recorder
        self._last: _Step | None = None  # of this episode

    def answered(self, row: Row, chunk: Chunk, number: int) -> None:
        """A row was answered with a chunk, the first action of which is its own."""
        delay = 0 if row.running is None else row.running.delay
        self._add(
            _Step(*row[:3], row.step, chunk.actions, number, row=0, seed=row.seed, delay=delay)
        )

    def observed(self, request: Request) -> None:
        """What a robot sees between two chunks; before the first, there is no action to it.

        A step that the request does not name is the one after that which was seen before.
        """
        last = self._last
        if last is None:
            return
        step = last.step + 1 if request.step is None else request.step
        row = last.row + step - last.step
        # A robot that has no action left holds; the last one comes nearest to that.
        row = min(max(row, 0), len(last.chunk) - 1)
        seen = {"images": request.images, "state": request.state, "prompt": request.prompt}
        self._add(last._replace(**seen, step=step, row=row))

    def ended(self) -> None:
        """The episode is over."""
        self._last = None
        self._recorder.add(self, None)

    def _add(self, step: _Step) -> None:
        self._last = step
        self._recorder.add(self, step)


@contextlib.contextmanager
def open_recorder(folder: Path, contract: Contract, dropped: Counter) -> Iterator[Recorder]:
    """Records a policy's robots in a folder that no other process writes, until the end.

    A recording of the same policy is gone on with. ConfigError: there is one of another policy, or
    the units of this one are unknown.
    """
    if contract.row is None:
        raise ConfigError(
            "--record: no row is known of the policy's dataset, so nobody could read the record; "
            "add one to data.rows of the checkpoint's config"
        )
    identity = {
        "policy": contract.metadata["policy_hash"],
        "policy_step": contract.metadata["checkpoint_step"],
    }
    recording = rollouts.Recording(
        _ABOUT, identity, contract.row, steps=_step_features(contract), episode=_EPISODE
    )
    with only_writer(lock_beside(folder), "imagewam serve --record"):
        found = rollouts.recording_of(folder)
        if found is None:
            with writing(folder):
                rollouts.begin_recording(folder, recording)
        elif found != recording:
            raise ConfigError(f"{folder}: holds another policy's recording; record elsewhere")
        recorder = Recorder(folder, recording, dropped)
        try:
            yield recorder
        finally:
            recorder.close()


def _step_features(contract: Contract) -> dict[str, Feature]:
    def number(doc: str) -> Feature:
        return Feature("int64", doc=doc)

    return {
        "chunk": Feature("float32", contract.action_shape, "The chunk that was answered last."),
        "chunk_id": number("Of that chunk, counted in its session."),
        "chunk_row": number("Of that chunk, which is the action; 0: it was asked for here."),
        "seed": Feature("int64", (SEEDS,), "Of that chunk's noise, with -1 behind."),
        "delay": number("Steps that the robot went on with before that chunk, as it said."),
        "step": number("As the robot counts, or its requests."),
    }
