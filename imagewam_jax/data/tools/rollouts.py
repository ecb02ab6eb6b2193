"""Rollouts as RLDS: episodes that a policy has played, kept one by one, and the set made of them.

A recording is a folder of the name of its dataset:

| in it | what it is |
|---|---|
| `.episodes/recording.json` | who played, in what, and the row that reads the dataset |
| `.episodes/000012.npz` | an episode that has ended; a file is there whole or not at all |
| `1.0.0/` | all of them as a TFDS version, with the same row in `row.json` |

An evaluation and a server write episodes with `write_episode`. TensorFlow and the simulators'
software OpenGL crash when they share a process, and a server imports no TensorFlow; so another
process makes the version:

    python -m imagewam_jax.data.tools.rollouts FOLDER
"""

import json
import os
import pprint
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Float32, Int64, UInt8
from tqdm import tqdm

from imagewam_jax.data.dataset_spec import DatasetSpec
from imagewam_jax.data.tools.rlds_shards import ShardWriter, publish
from imagewam_jax.errors import DataError, UserError
from imagewam_jax.files import written_whole

VERSION = "1.0.0"
ROW_FILE = "row.json"
_EPISODES, _RECORDING = ".episodes", "recording.json"
_JPEG_QUALITY = 95
_ACTION, _STATE, _LANGUAGE = "action", "observation/state", "language_instruction"


class Feature(NamedTuple):
    """What a recording holds besides images, state, action and instruction.

    dtype: NumPy's name of it, or "text". shape: of one step, or of the episode; -1 where it varies.
    """

    dtype: str
    shape: tuple[int, ...] = ()
    doc: str = ""


class Recording(NamedTuple):
    """What all episodes of a recording share.

    about: what the dataset's description says it is. identity: all that decides the episodes.
    row: the entry of `data.rows` that reads the dataset. steps, episode: the features that its
    episodes have besides, of each step and of the whole.
    """

    about: str
    identity: Mapping[str, Any]
    row: Mapping[str, Any]
    steps: Mapping[str, Feature] = {}
    episode: Mapping[str, Feature] = {}


class RecordedEpisode(NamedTuple):
    """What a policy saw and did.

    images: by camera key, one JPEG file per step, seen before its action.
    states: before each action, in the dataset's units.
    actions: in the dataset's units, as the policy asked for them.
    instructions: of each step.
    success: whether the last step ends a success.
    steps, episode: values of the features that the recording names.
    """

    images: Mapping[str, Sequence[bytes]]
    states: Float32[np.ndarray, "t p"]
    actions: Float32[np.ndarray, "t a"]
    instructions: Sequence[str]
    success: bool
    steps: Mapping[str, np.ndarray] = {}
    episode: Mapping[str, Any] = {}


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


def begin_recording(folder: Path, recording: Recording) -> None:
    """Says what the episodes of a recording are of."""
    features = ("steps", "episode")
    told = recording._asdict() | {
        kind: {name: feature._asdict() for name, feature in getattr(recording, kind).items()}
        for kind in features
    }
    with written_whole(folder / _EPISODES / _RECORDING) as file:
        file.write(json.dumps(told, indent=2).encode())


def recording_of(folder: Path) -> Recording | None:
    """What `begin_recording` wrote; None: there is no recording. DataError: it is damaged."""
    file = folder / _EPISODES / _RECORDING
    try:
        told = json.loads(file.read_text())
        for kind in ("steps", "episode"):
            told[kind] = {
                name: Feature(each["dtype"], tuple(each["shape"]), each["doc"])
                for name, each in told[kind].items()
            }
        return Recording(**told)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{file}: not the description of a recording: {error}") from error


def recorded_episodes(folder: Path) -> dict[int, Path]:
    """The episodes that are there, by number."""
    return {int(path.stem): path for path in sorted((folder / _EPISODES).glob("*.npz"))}


def jpeg_file(image: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """An image as recordings keep it: of full color resolution."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=_JPEG_QUALITY, colorsubsampling="444"
    )


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
    arrays: dict[str, Any] = {
        "states": episode.states,
        "actions": episode.actions,
        "instructions": np.array(episode.instructions),
        "success": episode.success,
    }
    for key, files in episode.images.items():
        arrays[f"images/{key}"], arrays[f"bytes/{key}"] = joined_files(files)
    arrays |= {f"steps/{name}": value for name, value in episode.steps.items()}
    arrays |= {f"episode/{name}": value for name, value in episode.episode.items()}
    with written_whole(folder / _EPISODES / f"{number:06d}.npz") as file:
        np.savez(file, **arrays)


def read_episode(path: Path) -> RecordedEpisode:
    """An episode of a recording. DataError: its file is damaged."""
    try:
        with np.load(path) as raw:

            def below(folder: str) -> dict[str, np.ndarray]:
                return {k.removeprefix(folder): raw[k] for k in raw if k.startswith(folder)}

            joined, lengths = below("images/"), below("bytes/")
            return RecordedEpisode(
                images={key: split_files(joined[key], lengths[key]) for key in lengths},
                states=raw["states"],
                actions=raw["actions"],
                instructions=raw["instructions"].tolist(),
                success=bool(raw["success"]),
                steps=below("steps/"),
                episode={name: value.item() for name, value in below("episode/").items()},
            )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: not an episode of a recording: {error}; remove it") from error


def build_version(folder: Path) -> Path:
    """Makes the TFDS version of all episodes of a recording, or makes it anew; returns its folder.

    DataError: there are no episodes, or one is damaged.
    """
    recording, paths = recording_of(folder), recorded_episodes(folder)
    if recording is None or not paths:
        raise DataError(f"{folder}: no episodes of a recording in {_EPISODES}")
    features = _features(recording)
    target, work = folder / VERSION, folder / f".{VERSION}.partial"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    writer = ShardWriter(work / "episodes", features)
    try:
        for path in tqdm(paths.values(), desc="writing RLDS", unit="episode"):
            writer.write(_rlds_episode(read_episode(path)), path.stem)
        shards = writer.finish()
    finally:
        writer.abandon()
    if target.exists():
        os.rename(target, work / "before")
    publish(work, target, folder.name, {"train": shards}, features, recording.about)
    with written_whole(target / ROW_FILE) as file:
        file.write((json.dumps({folder.name: recording.row}, indent=2) + "\n").encode())
    shutil.rmtree(work)
    return target


def _features(recording: Recording) -> Any:
    """The tfds.features.FeaturesDict of an episode."""
    import tensorflow_datasets as tfds

    row = recording.row
    observation = {
        key.removeprefix("observation/"): tfds.features.Image(
            shape=(None, None, 3), encoding_format="jpeg", doc="RGB, before the action."
        )
        for key in row["cameras"].values()
    }
    if row["state_keys"]:
        state = Feature("float32", (len(row["state"]["dims"]),), "Before the action.")
        observation["state"] = _tfds_feature(state)
    asked = "As the policy asked for it; simulators clip to bounds."
    steps = {
        _ACTION: Feature("float32", (len(row["action"]["dims"]),), asked),
        _LANGUAGE: Feature("text"),
        "is_first": Feature("bool"),
        "is_last": Feature("bool"),
        "is_terminal": Feature("bool", doc="The last step of a success."),
        "reward": Feature("float32", doc="1 at the last step of a success."),
        "discount": Feature("float32", doc="0 at a terminal step, otherwise 1."),
    }
    step = {name: _tfds_feature(each) for name, each in (steps | dict(recording.steps)).items()}
    episode = {name: _tfds_feature(each) for name, each in recording.episode.items()}
    return tfds.features.FeaturesDict(
        {
            "steps": tfds.features.Dataset({"observation": observation, **step}),
            "episode_metadata": episode,
        }
    )


def _tfds_feature(feature: Feature) -> Any:
    import tensorflow_datasets as tfds

    if feature.dtype == "text":
        return tfds.features.Text(doc=feature.doc)
    dtype = np.dtype(feature.dtype).type
    if not feature.shape:
        return tfds.features.Scalar(dtype, doc=feature.doc)
    shape = tuple(None if size < 0 else size for size in feature.shape)
    return tfds.features.Tensor(shape=shape, dtype=dtype, doc=feature.doc)


def _rlds_episode(episode: RecordedEpisode) -> dict[str, Any]:
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
                _LANGUAGE: episode.instructions[step],
                "is_first": step == 0,
                "is_last": step == last,
                "is_terminal": done,
                "reward": np.float32(done),
                "discount": np.float32(not done),
                **{name: values[step] for name, values in episode.steps.items()},
            }
        )
    return {"steps": steps, "episode_metadata": dict(episode.episode)}


def _main(folder: Path) -> None:
    version = build_version(folder)
    row = json.loads((version / ROW_FILE).read_text())
    print(f"recorded {len(recorded_episodes(folder))} episodes: {version}")
    print("read them with this row:")
    rows = pprint.pformat(row, width=96, sort_dicts=False, compact=True)
    print(f"config.data.dataset = {folder.name!r}\nconfig.data.rows = {rows}")


if __name__ == "__main__":
    try:
        _main(Path(sys.argv[1]))
    except (UserError, OSError) as error:
        raise SystemExit(str(error)) from None
