"""The sidecar index of one RLDS dataset: what makes its TFRecord shards random-access.

On disk an index is a folder with `meta.json` and, per split, one `.npy` file per column; opening
it maps the columns into memory. A frame is one step of one episode; frames are numbered through a
split, episode after episode, in shard order.
"""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, UInt32

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.registry import DatasetSpec
from imagewam_jax.data.tfrecord import framing_checksum

FORMAT_VERSION = 1
META_FILE = "meta.json"
EPISODE_COLUMNS = ("episode_start", "episode_shard", "record_offset", "record_length")
IMAGE_COLUMNS = ("offset", "length", "crc32c")


@dataclasses.dataclass(frozen=True)
class ImageColumn:
    """Where the encoded images of one camera lie: byte ranges of each frame's shard."""

    offset: Int64[np.ndarray, " frames"]
    length: Int32[np.ndarray, " frames"]
    crc32c: UInt32[np.ndarray, " frames"]
    shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class SplitIndex:
    """One split. `episode_start` has one entry more than there are episodes.

    record_offset, record_length: byte range of each episode's record data in its shard.
    text_id: each frame's row in `DatasetIndex.instructions`.
    features: low-dimensional step features [frames, ...] in their stored dtype.
    """

    name: str
    shards: tuple[Path, ...]
    episode_start: Int64[np.ndarray, " episodes+1"]
    episode_shard: Int32[np.ndarray, " episodes"]
    record_offset: Int64[np.ndarray, " episodes"]
    record_length: Int64[np.ndarray, " episodes"]
    frame_episode: Int32[np.ndarray, " frames"]
    text_id: Int32[np.ndarray, " frames"]
    features: dict[str, np.ndarray]
    images: dict[str, ImageColumn]

    @property
    def num_episodes(self) -> int:
        return len(self.episode_shard)

    @property
    def num_frames(self) -> int:
        return len(self.frame_episode)

    def describe_frame(self, frame: int) -> str:
        """Split, episode, step and file of a frame, for error messages."""
        episode = int(self.frame_episode[frame])
        step = frame - int(self.episode_start[episode])
        shard = self.shards[self.episode_shard[episode]]
        return f"split {self.name!r}, episode {episode}, step {step} ({shard})"


@dataclasses.dataclass(frozen=True)
class DatasetIndex:
    """An opened index. `checksum` identifies the indexed bytes and keys, wherever they lie."""

    name: str
    version: str
    checksum: str
    instructions: tuple[str, ...]
    splits: dict[str, SplitIndex]

    def split(self, name: str) -> SplitIndex:
        if name not in self.splits:
            raise DataError(f"{self.name} has no split {name!r}, it has {sorted(self.splits)}")
        return self.splits[name]


def default_index_dir(dataset_dir: Path, spec: DatasetSpec) -> Path:
    """Beside the shards, one per specification, for different ones index different keys."""
    return Path(dataset_dir) / "imagewam_index" / spec.name


def indexed_keys(spec: DatasetSpec) -> dict[str, str | list[str]]:
    """The keys of a specification that decide what an index holds."""
    return {
        "images": [key for _, key in spec.image_keys],
        "state": spec.state_key,
        "action": spec.action_key,
        "language": spec.language_key,
    }


def meta_checksum(meta: dict) -> str:
    """Sixteen hex digits over all of meta.json but the checksum itself; holds no directory."""
    content = {key: value for key, value in meta.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def column_file(split_dir: Path, key: str, column: str) -> Path:
    return split_dir / f"{key.replace('/', '.')}.{column}.npy"


def open_index(
    dataset_dir: Path | str, spec: DatasetSpec, index_dir: Path | str | None = None
) -> DatasetIndex:
    """Opens an index and checks that it describes the shards that are there now.

    Sizes and framing checksums of all shards are compared (one small read per episode). Raises
    DataError, saying how to rebuild, when there is no index, it is of another format or of other
    keys, or a shard is missing or differs.
    """
    dataset_dir = Path(dataset_dir)
    index_dir = Path(index_dir) if index_dir else default_index_dir(dataset_dir, spec)
    rebuild = f"build it with: imagewam index {dataset_dir} --dataset {spec.name}"
    if not (index_dir / META_FILE).is_file():
        raise DataError(f"{index_dir}: no index of {dataset_dir} for {spec.name!r}; {rebuild}")
    meta = json.loads((index_dir / META_FILE).read_text())
    if meta.get("format") != FORMAT_VERSION:
        raise DataError(
            f"{index_dir}: index format {meta.get('format')}, expected {FORMAT_VERSION}; {rebuild}"
        )
    if meta["checksum"] != meta_checksum(meta):
        raise DataError(f"{index_dir}: {META_FILE} differs from its own checksum; {rebuild}")
    if meta["keys"] != indexed_keys(spec):
        raise DataError(
            f"{index_dir}: indexes the keys {meta['keys']}, the specification of {spec.name!r} "
            f"asks for {indexed_keys(spec)}; {rebuild}"
        )
    splits = {
        name: _open_split(dataset_dir, index_dir, name, split, rebuild)
        for name, split in meta["splits"].items()
    }
    instructions = tuple(meta["instructions"])
    return DatasetIndex(meta["name"], meta["version"], meta["checksum"], instructions, splits)


def _open_split(
    dataset_dir: Path, index_dir: Path, name: str, meta: dict, rebuild: str
) -> SplitIndex:
    split_dir = index_dir / name

    def column(file: Path) -> np.ndarray:
        try:
            return np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: the index has lost a column ({error}); {rebuild}") from error

    episodes = {c: column(split_dir / f"{c}.npy") for c in EPISODE_COLUMNS}
    split = SplitIndex(
        name=name,
        shards=tuple(dataset_dir / shard["file"] for shard in meta["shards"]),
        **episodes,
        frame_episode=column(split_dir / "frame_episode.npy"),
        text_id=column(split_dir / "text_id.npy"),
        features={key: column(column_file(split_dir, key, "values")) for key in meta["features"]},
        images={
            key: ImageColumn(
                **{c: column(column_file(split_dir, key, c)) for c in IMAGE_COLUMNS},
                shape=tuple(shape),
            )
            for key, shape in meta["images"].items()
        },
    )
    for number, (path, pinned) in enumerate(zip(split.shards, meta["shards"], strict=True)):
        if not path.is_file():
            raise DataError(f"{path}: missing, but it is indexed in {index_dir}")
        if path.stat().st_size != pinned["size"]:
            raise DataError(
                f"{path}: {path.stat().st_size} bytes, the index was built over {pinned['size']}; "
                f"the shard is truncated or was replaced; {rebuild}"
            )
        here = split.episode_shard == number
        found = framing_checksum(path, split.record_offset[here], split.record_length[here])
        if found != pinned["framing_crc32c"]:
            raise DataError(
                f"{path}: its records have the checksum {found:08x}, the index was built over "
                f"{pinned['framing_crc32c']:08x}; the shard was replaced; {rebuild}"
            )
    return split
