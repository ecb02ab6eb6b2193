"""What a LeRobot folder says about itself: features, episodes, and where each episode lies.

`codebase_version` in meta/info.json tells two layouts apart, which the package's docstring
describes. Both become one `LeRobotFolder`.
"""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imagewam_jax.data.index.stand_ins import file_stand_in
from imagewam_jax.errors import DataError

# v2.0 differs from v2.1 in its statistics alone, which nothing here reads.
_ONE_EPISODE_PER_FILE = ("v2.0", "v2.1")
_MANY_EPISODES_PER_FILE = ("v3.0",)
_IMAGE_TYPES = ("image", "video")
_CHANNELS = (1, 3, 4)
_SMALLEST_IMAGE = 8  # rows and columns of an array that is taken for an image


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature of info.json.

    dtype: a NumPy name, "string", "image" or "video".
    shape: (height, width, channels) for an image, whatever order info.json has.
    names: of the dimensions; empty when info.json has none that fit the shape.
    array_shape: the shape as stored, of an image that is an array of uint8; () of any other.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    depth: bool = False
    array_shape: tuple[int, ...] = ()

    @property
    def is_image(self) -> bool:
        return self.dtype in _IMAGE_TYPES or bool(self.array_shape)


@dataclasses.dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames are: frame i is shown at start + i / fps seconds of the file."""

    file: Path
    start: float


@dataclasses.dataclass(frozen=True)
class Episode:
    """An episode of `length` steps; `data_file` holds its rows, perhaps among those of others."""

    index: int
    length: int
    data_file: Path
    videos: Mapping[str, VideoSpan]


@dataclasses.dataclass(frozen=True)
class LeRobotFolder:
    """The content of meta/.

    episodes: in the order of their index.
    tasks: instructions by task_index.
    splits: episode indices by split.
    video_frames: how many frames of each video file all episodes together claim.
    """

    path: Path
    codebase_version: str
    fps: float
    robot_type: str
    features: Mapping[str, Feature]
    episodes: tuple[Episode, ...]
    tasks: Mapping[int, str]
    splits: Mapping[str, tuple[int, ...]]
    video_frames: Mapping[Path, int]


def read_lerobot_folder(path: Path | str) -> LeRobotFolder:
    """Reads the files below meta/. DataError names a file, key or episode that is wrong.

    Data and videos are not read, nor is it checked that their files exist.
    """
    path = Path(path)
    info_file = path / "meta/info.json"
    info = _read_json(info_file)
    version = info.get("codebase_version")
    if version not in _ONE_EPISODE_PER_FILE + _MANY_EPISODES_PER_FILE:
        raise DataError(
            f"{info_file}: codebase_version is {version!r}, expected one of "
            f"{[*_ONE_EPISODE_PER_FILE, *_MANY_EPISODES_PER_FILE]}; convert the dataset with "
            "lerobot's own scripts first (convert_dataset_v1_to_v2.py, for v1)"
        )
    features = _features(_require(info, "features", info_file), info_file)
    videos = [key for key, feature in features.items() if feature.dtype == "video"]
    if version in _ONE_EPISODE_PER_FILE:
        episodes = _episodes_in_own_files(path, info, videos)
        tasks = _tasks_from_lines(path / "meta/tasks.jsonl")
    else:
        episodes = _episodes_in_shared_files(path, info, videos)
        tasks = _tasks_from_table(path / "meta/tasks.parquet")
    episodes = sorted(episodes, key=lambda episode: episode.index)
    _check_episodes(episodes, info, info_file)
    video_frames: dict[Path, int] = {}
    for episode in episodes:
        for span in episode.videos.values():
            video_frames[span.file] = video_frames.get(span.file, 0) + episode.length
    fps = _require(info, "fps", info_file)
    if not isinstance(fps, int | float) or fps <= 0:
        raise DataError(f"{info_file}: fps is {fps!r}, expected a positive number")
    return LeRobotFolder(
        path=path,
        codebase_version=version,
        fps=float(fps),
        robot_type=str(info.get("robot_type") or ""),
        features=features,
        episodes=tuple(episodes),
        tasks=tasks,
        splits=_splits(info, episodes, info_file),
        video_frames=video_frames,
    )


def _features(described: Mapping[str, Any], file: Path) -> dict[str, Feature]:
    features = {}
    for key, entry in described.items():
        dtype = _require(entry, "dtype", file, f"feature {key!r}")
        shape = _require(entry, "shape", file, f"feature {key!r}")
        if not isinstance(shape, list) or not all(isinstance(n, int) for n in shape):
            raise DataError(f"{file}: {key!r} has the shape {shape!r}, expected a list of sizes")
        shape, names = tuple(shape), entry.get("names")
        if dtype in _IMAGE_TYPES:
            shape = _height_width_channels(key, shape, names, file)
            features[key] = Feature(key, dtype, shape, depth=_is_depth(entry))
        elif dtype == "uint8" and like_image(shape):
            sorted_shape = _height_width_channels(key, shape, names, file)
            features[key] = Feature(key, dtype, sorted_shape, array_shape=shape)
        else:
            features[key] = Feature(key, dtype, shape, _dimension_names(names, shape))
    return features


def like_image(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape has rows, columns, and channels first or last."""
    if len(shape) != 3:
        return False
    last, first = (shape[:2], shape[2]), (shape[1:], shape[0])
    return any(min(size) >= _SMALLEST_IMAGE and n in _CHANNELS for size, n in (last, first))


def _height_width_channels(
    key: str, shape: tuple[int, ...], names: Any, file: Path
) -> tuple[int, int, int]:
    """Sorts the shape of an image; its names, or else its numbers, tell which are the channels."""
    if len(shape) != 3:
        raise DataError(f"{file}: image {key!r} has the shape {shape}, expected three numbers")
    if isinstance(names, list) and len(names) == 3:
        order = [str(name).rstrip("s") for name in names]
        if {"height", "width", "channel"} == set(order):
            shape = tuple(shape[order.index(n)] for n in ("height", "width", "channel"))
            return _checked_image(key, shape, file)
    if shape[0] <= 4 < shape[2]:
        shape = (shape[1], shape[2], shape[0])
    return _checked_image(key, shape, file)


def _checked_image(key: str, shape: tuple[int, ...], file: Path) -> tuple[int, int, int]:
    height, width, channels = shape
    if height < 1 or width < 1 or channels not in _CHANNELS:
        raise DataError(
            f"{file}: image {key!r} has {height} rows, {width} columns and {channels} channels, "
            f"expected rows and columns, and one of {_CHANNELS} channels"
        )
    return height, width, channels


def _is_depth(entry: Mapping[str, Any]) -> bool:
    for holder in (entry.get("info"), entry.get("video_info"), entry):
        if isinstance(holder, Mapping) and (
            holder.get("is_depth_map") or holder.get("video.is_depth_map")
        ):
            return True
    return False


def _dimension_names(names: Any, shape: tuple[int, ...]) -> tuple[str, ...]:
    """Names from a list, {"motors": [...]} or {name: position}; () unless one per dimension."""
    if isinstance(names, Mapping):
        values = list(names.values())
        if values and all(isinstance(value, int) for value in values):
            names = sorted(names, key=names.get)
        else:
            names = [n for value in values if isinstance(value, list) for n in value]
    if not isinstance(names, list) or len(shape) != 1 or len(names) != shape[0]:
        return ()
    return tuple(str(name) for name in names)


def _episodes_in_own_files(path: Path, info: Mapping[str, Any], videos: list[str]) -> list[Episode]:
    file = path / "meta/episodes.jsonl"
    info_file = path / "meta/info.json"
    chunk_size = int(_require(info, "chunks_size", info_file))
    episodes = []
    for entry in _read_lines(file):
        index = int(_require(entry, "episode_index", file))
        where = {"episode_index": index, "episode_chunk": index // chunk_size}
        spans = {
            key: VideoSpan(_fill(path, info, "video_path", {**where, "video_key": key}), 0.0)
            for key in videos
        }
        length = int(_require(entry, "length", file, f"episode {index}"))
        episodes.append(Episode(index, length, _fill(path, info, "data_path", where), spans))
    return episodes


def _episodes_in_shared_files(
    path: Path, info: Mapping[str, Any], videos: list[str]
) -> list[Episode]:
    import pyarrow.parquet as pq

    files = sorted((path / "meta/episodes").glob("*/*.parquet"))
    if not files:
        raise DataError(f"{path / 'meta/episodes'}: no chunk-*/file-*.parquet in it")
    fps = float(_require(info, "fps", path / "meta/info.json"))
    episodes = []
    for file in files:
        _check_downloaded(file)
        # The statistics of every episode are columns of this table too, by far the most of it.
        columns = [n for n in pq.read_schema(file).names if not n.startswith("stats/")]
        for row in pq.read_table(file, columns=columns).to_pylist():
            episodes.append(_episode_of_row(path, info, videos, row, file, fps))
    return episodes


def _episode_of_row(
    path: Path,
    info: Mapping[str, Any],
    videos: list[str],
    row: Mapping[str, Any],
    file: Path,
    fps: float,
) -> Episode:
    index = int(_require(row, "episode_index", file))

    def get(key: str) -> Any:
        return _require(row, key, file, f"episode {index}")

    length = int(get("length"))
    rows = int(get("dataset_to_index")) - int(get("dataset_from_index"))
    if rows != length:
        raise DataError(
            f"{file}: episode {index}: length is {length}, but dataset_from_index and "
            f"dataset_to_index are {rows} apart"
        )
    spans = {}
    for key in videos:
        prefix = f"videos/{key}"
        where = {
            "video_key": key,
            "chunk_index": int(get(f"{prefix}/chunk_index")),
            "file_index": int(get(f"{prefix}/file_index")),
        }
        start, stop = float(get(f"{prefix}/from_timestamp")), float(get(f"{prefix}/to_timestamp"))
        # A span may be longer (a sound track may outlast the picture), but not a frame shorter.
        if (stop - start) * fps < length - 0.5:
            raise DataError(
                f"{file}: episode {index}: {key!r} lasts from {start} to {stop} s, that is "
                f"{(stop - start) * fps:.1f} frames at {fps:g} per second, expected {length}"
            )
        spans[key] = VideoSpan(_fill(path, info, "video_path", where), start)
    where = {
        "chunk_index": int(get("data/chunk_index")),
        "file_index": int(get("data/file_index")),
    }
    return Episode(index, length, _fill(path, info, "data_path", where), spans)


def _check_episodes(episodes: list[Episode], info: Mapping[str, Any], file: Path) -> None:
    if not episodes:
        raise DataError(f"{file.parent.parent}: the dataset has no episodes")
    for before, after in itertools.pairwise(episodes):
        if before.index == after.index:
            raise DataError(f"{file.parent}: episode {after.index} is listed twice")
    for episode in episodes:
        if episode.length <= 0:
            raise DataError(
                f"{file.parent}: episode {episode.index} is empty: its length is {episode.length}"
            )
    total = info.get("total_episodes")
    if total is not None and total != len(episodes):
        raise DataError(f"{file}: total_episodes is {total}, but {len(episodes)} are listed")


def _tasks_from_lines(file: Path) -> dict[int, str]:
    return {
        int(_require(entry, "task_index", file)): str(_require(entry, "task", file))
        for entry in _read_lines(file)
    }


def _tasks_from_table(file: Path) -> dict[int, str]:
    """Instructions by task_index; they are the table's index, whatever pandas called it."""
    import pyarrow.parquet as pq

    if not file.is_file():
        raise DataError(f"{file}: missing")
    _check_downloaded(file)
    table = pq.read_table(file)
    texts = [f.name for f in table.schema if _is_text(f.type)]
    if len(texts) > 1 and all(table[texts[0]].equals(table[text]) for text in texts):
        texts = texts[:1]  # pandas may have stored its index, the text, as a column too
    if "task_index" not in table.column_names or len(texts) != 1:
        raise DataError(
            f"{file}: expected task_index and one column of text, found {table.schema.names}"
        )
    ids = table.column("task_index").to_pylist()
    return dict(zip(ids, table.column(texts[0]).to_pylist(), strict=True))


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _splits(
    info: Mapping[str, Any], episodes: Iterable[Episode], file: Path
) -> dict[str, tuple[int, ...]]:
    """Episode indices by split. A single split holds all episodes, even if info.json is stale."""
    indices = [episode.index for episode in episodes]
    ranges = info.get("splits") or {"train": ""}
    if len(ranges) == 1:
        return {next(iter(ranges)): tuple(indices)}
    splits = {}
    for name, text in ranges.items():
        try:
            start, stop = (int(part) for part in str(text).split(":"))
        except ValueError as error:
            raise DataError(f"{file}: split {name!r} is {text!r}, expected 'first:end'") from error
        splits[name] = tuple(i for i in indices if start <= i < stop)
    seen = sorted(i for part in splits.values() for i in part)
    if seen != indices:
        raise DataError(
            f"{file}: the splits {dict(ranges)} must hold each of the {len(indices)} episodes once"
        )
    return splits


def _fill(path: Path, info: Mapping[str, Any], name: str, values: Mapping[str, Any]) -> Path:
    file = path / "meta/info.json"
    template = _require(info, name, file)
    try:
        return path / template.format(**values)
    except (KeyError, AttributeError, ValueError, IndexError) as error:
        raise DataError(
            f"{file}: {name} is {template!r}, expected a path with some of {sorted(values)}"
        ) from error


def _check_downloaded(file: Path) -> None:
    if instead := file_stand_in(file):
        raise DataError(f"{file}: {instead}")


def _require(entry: Mapping[str, Any], key: str, file: Path, where: str = "") -> Any:
    if key not in entry or entry[key] is None:
        place = f"{file}: {where}" if where else str(file)
        raise DataError(f"{place}: no {key!r}; it has {sorted(entry)}")
    return entry[key]


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise DataError(f"{file}: missing; a LeRobot folder has it")
    _check_downloaded(file)
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}: not JSON: {error}") from error


def _read_lines(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise DataError(f"{file}: missing")
    _check_downloaded(file)
    entries = []
    # Not splitlines: it also cuts at characters that may stand inside of a string of JSON.
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise DataError(f"{file}: line {number} is not JSON: {error}") from error
    return entries
