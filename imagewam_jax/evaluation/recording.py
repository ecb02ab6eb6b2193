"""`imagewam evaluate --record`: what the policy does in the simulator, as a dataset (RLDS)."""

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.tools import rollouts
from imagewam_jax.data.tools.rollouts import Feature, RecordedEpisode
from imagewam_jax.errors import ConfigError, DataError
from imagewam_jax.evaluation.journal import Ended, check_identity
from imagewam_jax.evaluation.simulators.base import Observation
from imagewam_jax.evaluation.simulators.interpreters import own_interpreter
from imagewam_jax.files import lock_beside, only_writer, writing

_ABOUT = "What a policy did in a simulator, its failures too: see episode_metadata."
_EPISODE = {
    "task": Feature("text", doc="The task's name in the simulator."),
    "seed": Feature("int64", doc="Of the start; the number of a trial whose start is stored."),
    "success": Feature("bool", doc="The task was done within the simulator's step limit."),
    "policy": Feature("text", doc="A hash over the checksums of its checkpoint."),
    "policy_step": Feature("int64", doc="Training steps of the checkpoint."),
    "simulator": Feature("text"),
    "options": Feature("text", doc="The simulator's options, as JSON."),
    "evaluation": Feature("text", doc="All that decides how the episode went, as JSON."),
}


@dataclasses.dataclass
class _Playing:
    """What was seen and done so far; what was seen last is not yet followed by an action."""

    start: tuple[str, int]
    instruction: str
    images: dict[str, list[bytes]]
    states: list[Float[np.ndarray, "p"]] = dataclasses.field(default_factory=list)
    actions: list[Float[np.ndarray, "k a"]] = dataclasses.field(default_factory=list)

    def see(self, observation: Observation) -> None:
        for files, image in zip(self.images.values(), observation.images_nhwc, strict=True):
            files.append(rollouts.jpeg_file(image))
        self.states.append(observation.state)


class Recording:
    """Writes down every episode that it watches (a `rollout.Observer`), once it has ended.

    Cameras are drawn at every step for it. Until an episode ends, its images are in memory, as
    JPEG files of full color resolution.
    """

    every_step = True

    def __init__(self, folder: Path, recording: rollouts.Recording):
        self._folder, self._recording = folder, recording
        self._playing: dict[int, _Playing] = {}

    @property
    def episodes(self) -> frozenset[int]:
        """The numbers of the recorded episodes."""
        return frozenset(rollouts.recorded_episodes(self._folder))

    def began(self, episode: int, start: tuple[str, int], observation: Observation) -> None:
        images: dict[str, list[bytes]] = {
            key: [] for key in self._recording.row["cameras"].values()
        }
        self._playing[episode] = _Playing(start, observation.instruction, images)
        self._playing[episode].see(observation)

    def acted(
        self, episode: int, actions: Float[np.ndarray, "k a"], seen: Sequence[Observation]
    ) -> None:
        self._playing[episode].actions.append(actions)
        for observation in seen:
            self._playing[episode].see(observation)

    def ended(self, episode: int, ended: Ended) -> None:
        """Writes the episode. WriteError: it cannot be written."""
        played = self._playing.pop(episode)
        actions = np.concatenate(played.actions).astype(np.float32)
        count = len(actions)  # what was seen after the last action belongs to no step
        (task, seed), identity = played.start, self._recording.identity
        recorded = RecordedEpisode(
            images={key: files[:count] for key, files in played.images.items()},
            states=np.stack(played.states[:count]).astype(np.float32),
            actions=actions,
            instructions=[played.instruction] * count,
            success=bool(ended.success),
            episode={
                "task": task,
                "seed": seed,
                "success": bool(ended.success),
                "policy": identity["checkpoint"],
                "policy_step": identity["step"],
                "simulator": identity["simulator"],
                "options": json.dumps(identity["options"], sort_keys=True),
                "evaluation": json.dumps(identity, sort_keys=True),
            },
        )
        with writing(self._folder):
            rollouts.write_episode(self._folder, episode, recorded)

    def build(self) -> Path:
        """Makes the TFDS version of all recorded episodes, in a process of its own, which says what
        reads it. DataError: it could not be made; the process has said why."""
        python, environment = own_interpreter()
        environment["TF_CPP_MIN_LOG_LEVEL"] = "3"  # else it tells at length what is not here
        command = [python, "-m", "imagewam_jax.data.tools.rollouts", str(self._folder)]
        if subprocess.run(command, env=environment).returncode != 0:
            raise DataError(f"{self._folder}: the recorded episodes could not be written as RLDS")
        return self._folder / rollouts.VERSION


@contextlib.contextmanager
def open_recording(
    directory: Path,
    spec: DatasetSpec,
    cameras: Sequence[str],
    identity: Mapping[str, Any],
    *,
    resume: bool,
) -> Iterator[Recording]:
    """A recording of the dataset `<directory>/<name>_rollouts`, which no other process writes.

    spec, cameras: of the policy's dataset, and the roles of the cameras that it sees.
    identity: all that decides how an episode goes.
    resume: a recording of the same identity is gone on with.
    ConfigError: TFDS is not installed, or there is a recording that is not to be gone on with.
    """
    if find_spec("tensorflow_datasets") is None:
        raise ConfigError("--record writes RLDS with TFDS: pip install 'imagewam-jax[tfds]'")
    folder = directory / f"{spec.name}_rollouts"
    recording = rollouts.Recording(
        _ABOUT, identity, rollouts.recorded_row(spec, cameras), episode=_EPISODE
    )
    with only_writer(lock_beside(folder), "imagewam evaluate --record"):
        found = rollouts.recording_of(folder)
        if found is None:
            with writing(folder):
                rollouts.begin_recording(folder, recording)
        elif not resume:
            raise ConfigError(
                f"{folder}: holds a recording; go on with it by --resume, or record elsewhere"
            )
        else:
            check_identity(folder, "episodes", found.identity, identity)
        yield Recording(folder, recording)
