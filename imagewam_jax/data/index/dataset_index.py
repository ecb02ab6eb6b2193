"""The sidecar index of one RLDS dataset, which makes its shards random-access.

On disk an index is a folder with `meta.json` and, per split, one `.npy` file per array of a column;
opening it maps them into memory. It holds every step and episode feature that can be held
(`skipped` says why one is not), so it serves any use of the dataset. A frame is one step of one
episode; frames are numbered through a split, episode after episode, in shard order.
"""

import contextlib
import dataclasses
import hashlib
import json
import logging
import shlex
from collections.abc import Iterator
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
from imagewam_jax.data.index.records import TFRECORD, check_can_be_read, shard_checksum
from imagewam_jax.errors import DataError
from imagewam_jax.files import allow_open_files, check_open_files, written_whole
from imagewam_jax.storage.objects import AnyPath, as_path, generations, is_remote

_LOG = logging.getLogger(__name__)
FORMAT_VERSION = 2
META_FILE = "meta.json"
INDEX_DIR = "imagewam_index"
SPLITS_DIR = "splits"
COMPARED_FILE = "compared-{split}.json"  # the objects that were compared with the index
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
    generations: of shards that are objects, what they were when the index was opened.
    """

    name: str
    shards: tuple[AnyPath, ...]
    episode_start: Int64[np.ndarray, " starts"]
    episode_shard: Int32[np.ndarray, " episodes"]
    record_offset: Int64[np.ndarray, " episodes"]
    record_length: Int64[np.ndarray, " episodes"]
    frame_episode: Int32[np.ndarray, " frames"]
    steps: dict[str, Column]
    episodes: dict[str, Column]
    images: dict[str, ImageColumn]
    file_format: str = TFRECORD
    generations: tuple[str, ...] = ()

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


def default_index_dir(dataset_dir: AnyPath | str) -> Path:
    """The folder of the index beside the shards. DataError: they are objects, to which nothing is
    added unasked."""
    folder = as_path(dataset_dir)
    if is_remote(folder):
        raise DataError(
            f"{folder}: say where its index is to lie, on a disk or at another address: "
            "data.index_directory of a config, --output of imagewam data index"
        )
    return folder / INDEX_DIR


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


def open_index(dataset_dir: AnyPath | str, index_dir: Path | str | None = None) -> DatasetIndex:
    """Opens an index and checks that it describes the shards that are there now.

    Sizes and framing checksums of all shards are compared (one small read per episode); of objects,
    whose generations tell whether they are those that were compared before, only once. Raises
    DataError, saying how to rebuild, when there is no index, it is of another format, or a shard is
    missing or differs.
    """
    dataset_dir = as_path(dataset_dir)
    index_dir = Path(index_dir) if index_dir else default_index_dir(dataset_dir)
    allow_open_files()
    rebuild = f"rebuild with: imagewam data index {shlex.quote(str(dataset_dir))}"
    if is_remote(dataset_dir) or index_dir != default_index_dir(dataset_dir):
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
        split = _open_split(dataset_dir, index_dir, name, meta, rebuild)
        check_can_be_read(dataset_dir, split.file_format)
        if is_remote(dataset_dir):
            split = _checked_objects(split, split_meta["shards"], index_dir, rebuild)
        else:
            _check_shards(split, split_meta["shards"], index_dir, rebuild)
        splits[name] = split
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
    dataset_dir: AnyPath, index_dir: Path, split: str, meta: dict, rebuild: str
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
    for path, pinned, rows in _with_episodes(split, shards):
        if not path.is_file():
            raise DataError(f"{path}: missing, but it is indexed in {index_dir}; {rebuild}")
        if (size := path.stat().st_size) != pinned["size"]:
            raise DataError(
                f"{path}: {size} bytes, the index was built over {pinned['size']}; "
                f"the shard is truncated or was replaced; {rebuild}"
            )
        _compare_records(path, pinned, split, rows, rebuild)


def _with_episodes(split: SplitIndex, shards: list[dict]) -> Iterator[tuple[AnyPath, dict, slice]]:
    """Each shard with what the index recorded of it, and the numbers of its episodes."""
    bounds = np.searchsorted(split.episode_shard, np.arange(len(shards) + 1)).tolist()
    for number, (path, pinned) in enumerate(zip(split.shards, shards, strict=True)):
        yield path, pinned, slice(*bounds[number : number + 2])


def _compare_records(
    path: AnyPath, pinned: dict, split: SplitIndex, rows: slice, rebuild: str
) -> None:
    found = shard_checksum(
        path, split.file_format, split.record_offset[rows], split.record_length[rows]
    )
    if found != pinned["framing_crc32c"]:
        raise DataError(
            f"{path}: its records have the checksum {found:08x}, the index was built over "
            f"{pinned['framing_crc32c']:08x}; the shard was replaced; {rebuild}"
        )


def _checked_objects(
    split: SplitIndex, shards: list[dict], index_dir: Path, rebuild: str
) -> SplitIndex:
    """The split with the generations of its objects, after the same comparison of their records.

    An object of a generation that was compared before, by whatever process, is not read.
    """
    found = generations(split.shards)
    file = index_dir / COMPARED_FILE.format(split=split.name)
    try:
        compared = set(json.loads(file.read_text()))
    except (OSError, ValueError, TypeError):
        compared = set()
    now = [f"{path} {generation}" for path, generation in zip(split.shards, found, strict=True)]
    for place, generation, (path, pinned, rows) in zip(
        now, found, _with_episodes(split, shards), strict=True
    ):
        if not generation:
            raise DataError(f"{path}: missing, but it is indexed in {index_dir}; {rebuild}")
        if place not in compared:
            _compare_records(path, pinned, split, rows, rebuild)
    if not compared.issuperset(now):
        with contextlib.suppress(OSError), written_whole(file) as written:  # or compared again
            written.write(json.dumps(now, indent=1).encode())
    return dataclasses.replace(split, generations=tuple(found))
