"""Rollouts as RLDS: episodes that a policy has played, kept one by one, and the set made of them.

A recording is a folder of the name of its dataset:

| in it | what it is |
|---|---|
| `.episodes/recording.json` | who played, in what, and the row that reads the dataset |
| `.episodes/000012.npz` | an episode that has ended; a file is there whole or not at all |
| `1.0.0/` | all of them as a TFDS version, with the same row in `row.json` |

An evaluation writes episodes with `write_episode`. TensorFlow and the simulators' software OpenGL
crash when they share a process, and so another one makes the version:

    python -m imagewam_jax.data.tools.rollouts FOLDER
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from tqdm import tqdm

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.tools.rlds_shards import ShardWriter, publish
from imagewam_jax.errors import DataError, UserError
from imagewam_jax.files import written_whole

VERSION = "1.0.0"
ROW_FILE = "row.json"
_EPISODES, _RECORDING = ".episodes", "recording.json"
_ACTION, _STATE, _LANGUAGE = "action", "observation/state", "language_instruction"


class RecordedEpisode(NamedTuple):
    """What a policy saw and did.

    images: by camera key, one JPEG file per step, seen before its action.
    states: before each action, in the dataset's units.
    actions: in the dataset's units, as the policy asked for them.
    """

    task: str
    seed: int
    instruction: str
    success: bool
    images: Mapping[str, Sequence[bytes]]
    states: Float32[np.ndarray, "t p"]
    actions: Float32[np.ndarray, "t a"]


def recorded_row(spec: DatasetSpec, roles: Sequence[str]) -> dict[str, Any]:
    """The entry of `data.rows` that reads what a policy of a dataset did, seeing these cameras.

    Actions and states are recorded in standard units, so nothing transforms them. Cameras keep
    their keys where these are plain.
    """
    stored = {role: camera.key for role, camera in spec.cameras}
    cameras = {
        role: key if re.fullmatch(r"observation/\w+", key) else f"observation/{role}"
        for role, key in ((role, stored.get(role, "")) for role in roles)
    }
    row: dict[str, Any] = {
        "cameras": cameras,
        "action": {
            "name": spec.action.name,
            "dims": list(spec.action.dims),
            "relative": list(spec.action.relative),
        },
        "state": {"name": spec.state.name, "dims": list(spec.state.dims)},
        "control_hz": spec.control_hz,
        "action_keys": [_ACTION],
        "state_keys": [_STATE] if spec.state.dims else [],
        "language": [_LANGUAGE],
    }
    return row


def begin_recording(folder: Path, identity: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Says what the episodes of a recording are of: all that decides them, and the row."""
    text = json.dumps({"identity": identity, "row": row}, indent=2)
    with written_whole(folder / _EPISODES / _RECORDING) as file:
        file.write(text.encode())


def recording_of(folder: Path) -> dict[str, Any] | None:
    """What `begin_recording` wrote; None: there is no recording. DataError: it is damaged."""
    file = folder / _EPISODES / _RECORDING
    try:
        return dict(json.loads(file.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{file}: not the description of a recording: {error}") from error


def recorded_episodes(folder: Path) -> dict[int, Path]:
    """The episodes that are there, by number."""
    return {int(path.stem): path for path in sorted((folder / _EPISODES).glob("*.npz"))}


def joined_files(
    files: Sequence[bytes],
) -> tuple[UInt8[np.ndarray, " all_bytes"], Int64[np.ndarray, " files"]]:
    """The bytes of some files, one after the other, and the length of each."""
    return np.frombuffer(b"".join(files), np.uint8), np.array([len(file) for file in files])


def split_files(
    joined: UInt8[np.ndarray, " all_bytes"], lengths: Int64[np.ndarray, " files"]
) -> list[bytes]:
    """The inverse of `joined_files`."""
    return [file.tobytes() for file in np.split(joined, np.cumsum(lengths)[:-1])]


def write_episode(folder: Path, number: int, episode: RecordedEpisode) -> None:
    """Adds an episode to a recording, or replaces it."""
    arrays: dict[str, Any] = {}
    for key, files in episode.images.items():
        arrays[f"images/{key}"], arrays[f"bytes/{key}"] = joined_files(files)
    arrays |= {k: v for k, v in episode._asdict().items() if k != "images"}
    with written_whole(folder / _EPISODES / f"{number:06d}.npz") as file:
        np.savez(file, **arrays)


def read_episode(path: Path) -> RecordedEpisode:
    """An episode of a recording. DataError: its file is damaged."""
    try:
        with np.load(path) as raw:
            cameras = [key.removeprefix("bytes/") for key in raw if key.startswith("bytes/")]
            images = {
                key: split_files(raw[f"images/{key}"], raw[f"bytes/{key}"]) for key in cameras
            }
            return RecordedEpisode(
                task=str(raw["task"]),
                seed=int(raw["seed"]),
                instruction=str(raw["instruction"]),
                success=bool(raw["success"]),
                images=images,
                states=raw["states"],
                actions=raw["actions"],
            )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not an episode of a recording: {error}; remove it") from error


def build_version(folder: Path) -> Path:
    """Makes the TFDS version of all episodes of a recording, or makes it anew; returns its folder.

    DataError: there are no episodes, or one is damaged.
    """
    description, paths = recording_of(folder), recorded_episodes(folder)
    if description is None or not paths:
        raise DataError(f"{folder}: no episodes of a recording in {_EPISODES}")
    identity, row = description["identity"], description["row"]
    features = _features(row)
    target, work = folder / VERSION, folder / f".{VERSION}.partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    writer = ShardWriter(work / "episodes", features)
    try:
        for path in tqdm(paths.values(), desc="writing RLDS", unit="episode"):
            writer.write(_rlds_episode(read_episode(path), identity), path.stem)
        shards = writer.finish()
    finally:
        writer.abandon()
    if target.exists():
        os.rename(target, work / "before")
    about = "What a policy did in a simulator, its failures too: see episode_metadata."
    publish(work, target, folder.name, {"train": shards}, features, about)
    with written_whole(target / ROW_FILE) as file:
        file.write((json.dumps({folder.name: row}, indent=2) + "\n").encode())
    shutil.rmtree(work)
    return target


def _features(row: Mapping[str, Any]) -> Any:
    """The tfds.features.FeaturesDict of an episode."""
    import tensorflow_datasets as tfds

    scalar, text = tfds.features.Scalar, tfds.features.Text

    def vector(dims: int, doc: str) -> Any:
        return tfds.features.Tensor(shape=(dims,), dtype=np.float32, doc=doc)

    observation = {
        key.removeprefix("observation/"): tfds.features.Image(
            shape=(None, None, 3), encoding_format="jpeg", doc="RGB, before the action."
        )
        for key in row["cameras"].values()
    }
    if row["state_keys"]:
        observation["state"] = vector(len(row["state"]["dims"]), "Before the action.")
    step = {
        "observation": observation,
        _ACTION: vector(
            len(row["action"]["dims"]), "As the policy asked for it; simulators clip to bounds."
        ),
        _LANGUAGE: text(),
        "is_first": scalar(np.bool_),
        "is_last": scalar(np.bool_),
        "is_terminal": scalar(np.bool_, doc="The last step of a success."),
        "reward": scalar(np.float32, doc="1 at the last step of a success."),
        "discount": scalar(np.float32, doc="0 at a terminal step, otherwise 1."),
    }
    episode = {
        "task": text(doc="The task's name in the simulator."),
        "seed": scalar(np.int64, doc="Of the start; the number of a trial whose start is stored."),
        "success": scalar(np.bool_, doc="The task was done within the simulator's step limit."),
        "policy": text(doc="A hash over the checksums of its checkpoint."),
        "policy_step": scalar(np.int64, doc="Training steps of the checkpoint."),
        "simulator": text(),
        "options": text(doc="The simulator's options, as JSON."),
        "evaluation": text(doc="All that decides how the episode went, as JSON."),
    }
    return tfds.features.FeaturesDict(
        {"steps": tfds.features.Dataset(step), "episode_metadata": episode}
    )


def _rlds_episode(episode: RecordedEpisode, identity: Mapping[str, Any]) -> dict[str, Any]:
    last = len(episode.actions) - 1
    steps = []
    for step, action in enumerate(episode.actions):
        observation: dict[str, Any] = {
            key.removeprefix("observation/"): files[step] for key, files in episode.images.items()
        }
        if episode.states.shape[1]:
            observation["state"] = episode.states[step]
        done = episode.success and step == last
        steps.append(
            {
                "observation": observation,
                _ACTION: action,
                _LANGUAGE: episode.instruction,
                "is_first": step == 0,
                "is_last": step == last,
                "is_terminal": done,
                "reward": np.float32(done),
                "discount": np.float32(not done),
            }
        )
    metadata = {
        "task": episode.task,
        "seed": episode.seed,
        "success": episode.success,
        "policy": identity["checkpoint"],
        "policy_step": identity["step"],
        "simulator": identity["simulator"],
        "options": json.dumps(identity["options"], sort_keys=True),
        "evaluation": json.dumps(identity, sort_keys=True),
    }
    return {"steps": steps, "episode_metadata": metadata}


if __name__ == "__main__":
    try:
        build_version(Path(sys.argv[1]))
    except (UserError, OSError) as error:
        raise SystemExit(str(error)) from None
