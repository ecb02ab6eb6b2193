"""The sidecar index of one RLDS dataset, which makes its shards random-access.

On disk an index is a folder with `meta.json` and, per split, one `.npy` file per array of a column;
opening it maps them into memory. It holds every step and episode feature that can be held
(`skipped` says why one is not), so it serves any use of the dataset. A frame is one step of one
episode; frames are numbered through a split, episode after episode, in shard order.
"""

import dataclasses
import hashlib
import json
import logging
import shlex
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from imagewam_jax.data.index.columns import (
    Coded,
    Column,
    Dense,
    ImageColumn,
    Ragged,
    Text,
    file_stem,
    unpack_texts,
)
from imagewam_jax.data.index.records import TFRECORD, shard_checksum
from imagewam_jax.errors import DataError
from imagewam_jax.files import allow_open_files, check_open_files

_LOG = logging.getLogger(__name__)
FORMAT_VERSION = 2
META_FILE = "meta.json"
INDEX_DIR = "imagewam_index"
SPLITS_DIR = "splits"
EPISODE_ARRAYS = ("episode_start", "episode_shard", "record_offset", "record_length")
IMAGE_ARRAYS = ("offset", "length", "crc32c", "size_ehw")


@dataclasses.dataclass(frozen=True, eq=False)
class SplitIndex:
    """The index of one split.

    episode_start: the first frame of each episode, then the number of frames.
    record_offset, record_length: byte range of each episode's record data in its shard; where
      records are compressed, the offset of its chunk and the length of the data.
    steps: columns with a row per frame, by key below `steps`, such as "observation/state".
    episodes: columns with a row per episode, by key from the record's root.
    images: image columns by key below `steps`.
    file_format: of the shards, one of `records.FILE_FORMATS`.
    """

    name: str
    shards: tuple[Path, ...]
    episode_start: Int64[np.ndarray, " starts"]
    episode_shard: Int32[np.ndarray, " episodes"]
    record_offset: Int64[np.ndarray, " episodes"]
    record_length: Int64[np.ndarray, " episodes"]
    frame_episode: Int32[np.ndarray, " frames"]
    steps: dict[str, Column]
    episodes: dict[str, Column]
    images: dict[str, ImageColumn]
    file_format: str = TFRECORD

    @property
    def num_episodes(self) -> int:
        return len(self.episode_shard)

    @property
    def num_frames(self) -> int:
        return len(self.frame_episode)

    def record_number(self, episode: int) -> int:
        """Which of its shard's records an episode is."""
        return int(episode - np.searchsorted(self.episode_shard, self.episode_shard[episode]))

    def describe_frame(self, frame: int) -> str:
        """Split, episode, step and file of a frame, for error messages."""
        episode = int(self.frame_episode[frame])
        step = frame - int(self.episode_start[episode])
        shard = self.shards[self.episode_shard[episode]]
        return f"split {self.name!r}, episode {episode}, step {step} ({shard})"


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetIndex:
    """An opened index. `checksum` identifies the indexed bytes and keys, in whatever folder.

    skipped: why a feature is not indexed, by its key from the record's root.
    left_out: by split, the file names of shards that were not there and were left out.
    """

    name: str
    version: str
    checksum: str
    splits: dict[str, SplitIndex]
    skipped: dict[str, str]
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def split(self, name: str) -> SplitIndex:
        if name not in self.splits:
            raise DataError(f"{self.name} has no split {name!r}, it has {sorted(self.splits)}")
        return self.splits[name]


def default_index_dir(dataset_dir: Path | str) -> Path:
    """The folder of the index beside the shards."""
    return Path(dataset_dir) / INDEX_DIR


def meta_checksum(meta: dict) -> str:
    """Sixteen hex digits over the content of meta.json without its checksum and any folder."""
    content = {key: value for key, value in meta.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def array_file(index_dir: Path, split: str, name: str) -> Path:
    """The file of a split's array such as "episode_start" or "steps/observation/state:values"."""
    folder = index_dir / SPLITS_DIR / split
    if ":" not in name:
        return folder / f"{name}.npy"
    column, part = name.rsplit(":", 1)
    scope, key = column.split("/", 1)
    return folder / scope / f"{file_stem(key)}.{part}.npy"


def open_index(dataset_dir: Path | str, index_dir: Path | str | None = None) -> DatasetIndex:
    """Opens an index and checks that it describes the shards that are there now.

    Sizes and framing checksums of all shards are compared (one small read per episode). Raises
    DataError, saying how to rebuild, when there is no index, it is of another format, or a shard is
    missing or differs.
    """
    dataset_dir = Path(dataset_dir)
    index_dir = Path(index_dir) if index_dir else default_index_dir(dataset_dir)
    allow_open_files()
    rebuild = f"rebuild with: imagewam data index {shlex.quote(str(dataset_dir))}"
    if index_dir != default_index_dir(dataset_dir):
        rebuild += f" --output={shlex.quote(str(index_dir))}"
    if not (index_dir / META_FILE).is_file():
        unfinished = " (an unfinished build is there)" if index_dir.is_dir() else ""
        raise DataError(f"{index_dir}: no index of {dataset_dir}{unfinished}; {rebuild}")
    try:
        meta = json.loads((index_dir / META_FILE).read_text())
        found = meta.get("format")
    except (ValueError, AttributeError) as error:
        raise DataError(f"{index_dir / META_FILE}: not readable: {error}; {rebuild}") from error
    if found != FORMAT_VERSION:
        raise DataError(f"{index_dir}: index format {found}, expected {FORMAT_VERSION}; {rebuild}")
    if meta.get("checksum") != meta_checksum(meta):
        raise DataError(f"{index_dir}: {META_FILE} differs from its own checksum; {rebuild}")
    splits = {}
    for name, split_meta in meta["splits"].items():
        splits[name] = _open_split(dataset_dir, index_dir, name, meta, rebuild)
        _check_shards(splits[name], split_meta["shards"], index_dir, rebuild)
    left_out = meta.get("left_out", {})
    for name, names in left_out.items():
        _LOG.warning(
            "%s: %d shards of split %r were not there and are left out", index_dir, len(names), name
        )
    return DatasetIndex(
        meta["name"],
        meta["version"],
        meta["checksum"],
        splits,
        meta["skipped"],
        left_out,
    )


def _open_split(
    dataset_dir: Path, index_dir: Path, split: str, meta: dict, rebuild: str
) -> SplitIndex:
    here = meta["splits"][split]

    def array(name: str, rows: int | None = None) -> np.ndarray:
        file = array_file(index_dir, split, name)
        try:
            values = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            check_open_files(error)
            raise DataError(f"{file}: the index has lost a column ({error}); {rebuild}") from error
        if rows is not None and len(values) != rows:
            raise DataError(f"{file}: {len(values)} rows, expected {rows}; {rebuild}")
        return values

    def column(name: str, declared: dict, rows: int | None) -> Column:
        if declared["ragged"]:
            start = array(f"{name}:row_start", rows + 1)
            return Ragged(column(name, {**declared, "ragged": False}, None), start)
        if declared["kind"] == "dense":
            return Dense(array(f"{name}:values", rows))
        ids = array(f"{name}:ids", rows)
        if declared["kind"] == "coded":
            return Coded(ids, array(f"{name}:rows"))
        return Text(ids, unpack_texts(array(f"{name}:texts"), array(f"{name}:text_start")))

    def image(key: str, declared: dict) -> ImageColumn:
        rows = {name: frames for name in IMAGE_ARRAYS} | {"size_ehw": episodes}
        arrays = {name: array(f"images/{key}:{name}", rows[name]) for name in IMAGE_ARRAYS}
        return ImageColumn(
            **arrays,
            shape=tuple(declared["shape"]),
            dtype=declared["dtype"],
            encoding=declared.get("encoding", ""),
        )

    episodes, frames = here["episodes"], here["frames"]
    return SplitIndex(
        name=split,
        shards=tuple(dataset_dir / shard["file"] for shard in here["shards"]),
        **{n: array(n, episodes + (n == "episode_start")) for n in EPISODE_ARRAYS},
        frame_episode=array("frame_episode", frames),
        steps={k: column(f"steps/{k}", d, frames) for k, d in meta["steps"].items()},
        episodes={k: column(f"episodes/{k}", d, episodes) for k, d in meta["episodes"].items()},
        images={key: image(key, declared) for key, declared in meta["images"].items()},
        file_format=here["shards"][0].get("format", TFRECORD),
    )


def _check_shards(split: SplitIndex, shards: list[dict], index_dir: Path, rebuild: str) -> None:
    """Compares each shard with the size and the framing checksum that the index recorded."""
    bounds = np.searchsorted(split.episode_shard, np.arange(len(shards) + 1))
    for number, (path, pinned) in enumerate(zip(split.shards, shards, strict=True)):
        if not path.is_file():
            raise DataError(f"{path}: missing, but it is indexed in {index_dir}; {rebuild}")
        if path.stat().st_size != pinned["size"]:
            raise DataError(
                f"{path}: {path.stat().st_size} bytes, the index was built over {pinned['size']}; "
                f"the shard is truncated or was replaced; {rebuild}"
            )
        here = slice(bounds[number], bounds[number + 1])
        found = shard_checksum(
            path, split.file_format, split.record_offset[here], split.record_length[here]
        )
        if found != pinned["framing_crc32c"]:
            raise DataError(
                f"{path}: its records have the checksum {found:08x}, the index was built over "
                f"{pinned['framing_crc32c']:08x}; the shard was replaced; {rebuild}"
            )
