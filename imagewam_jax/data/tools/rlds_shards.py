"""RLDS shards and their metadata, written with TFDS: what an import and a recording share.

TensorFlow is imported inside of functions: it is needed only where something is written.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from imagewam_jax.errors import DataError

# TFDS itself cuts shards at 1 GiB; a record is one protocol buffer message, at most 2 GiB.
SHARD_LIMIT = 2**30
_RECORD_LIMIT = 2**31 - 2**20


class Shard(NamedTuple):
    """A finished shard file, how many episodes it holds, and their bytes."""

    file: str
    episodes: int
    num_bytes: int


class ShardWriter:
    """Writes episodes to `<stem>-0.tfrecord`, `-1`, ...: a new one where SHARD_LIMIT is reached.

    The files get their names when they are closed; until then they carry the process's number.
    """

    def __init__(self, stem: Path, features: Any):
        self._stem = stem
        self._features = features
        self._shards: list[Shard] = []
        self._writer: Any = None
        self._episodes = 0
        self._bytes = 0

    def write(self, episode: dict[str, Any], name: str) -> None:
        """Writes one episode, which errors call by its name. DataError: it is too large."""
        import tensorflow as tf

        held = sum(
            len(value)
            for step in episode["steps"]
            for value in step["observation"].values()
            if isinstance(value, bytes)
        )
        if held > _RECORD_LIMIT:
            raise DataError(
                f"episode {name}: {held} bytes of images, a record holds {_RECORD_LIMIT}: give a "
                "smaller size or a lower jpeg_quality"
            )
        record = self._features.serialize_example(episode)
        if self._writer is not None and self._bytes + len(record) > SHARD_LIMIT:
            self._close_shard()
        if self._writer is None:
            self._writer = tf.io.TFRecordWriter(str(self._open_file()))
        self._writer.write(record)
        self._episodes += 1
        self._bytes += len(record)

    def finish(self) -> list[Shard]:
        if self._writer is not None:
            self._close_shard()
        return self._shards

    def abandon(self) -> None:
        """Removes the shard that is not finished."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._open_file().unlink(missing_ok=True)

    def _open_file(self) -> Path:
        return self._stem.with_name(f"{self._stem.name}-{len(self._shards)}.open-{os.getpid()}")

    def _close_shard(self) -> None:
        file = self._stem.with_name(f"{self._stem.name}-{len(self._shards)}.tfrecord")
        self._writer.close()
        self._writer = None
        with open(self._open_file(), "rb+") as written:
            os.fsync(written.fileno())
        os.replace(self._open_file(), file)
        self._shards.append(Shard(file.name, self._episodes, self._bytes))
        self._episodes = self._bytes = 0


def publish(
    work: Path,
    target: Path,
    name: str,
    shards: dict[str, list[Shard]],
    features: Any,
    description: str,
) -> None:
    """Gathers the shards in `work` into a TFDS version folder and moves it to `target`.

    Until the last rename, `work` keeps every shard, so a run that is killed here loses none.
    """
    import tensorflow_datasets as tfds

    ready = work / "ready" / name / target.name
    ready.mkdir(parents=True)
    template = tfds.core.ShardedFileTemplate(
        data_dir=ready, dataset_name=name, filetype_suffix="tfrecord", split="train"
    )
    splits = []
    for split, of_split in shards.items():
        naming = template.replace(split=split)
        for number, shard in enumerate(of_split):
            _link(
                work / shard.file,
                naming.sharded_filepath(shard_index=number, num_shards=len(of_split)),
            )
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.episodes for shard in of_split],
                num_bytes=sum(shard.num_bytes for shard in of_split),
                filename_template=naming,
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=ready,
        features=features,
        split_infos=splits,
        version=target.name,
        check_data=False,
        description=description,
        # So that it is read in the order of the episodes unless asked otherwise.
        disable_shuffling=True,
    )
    os.replace(ready, target)


def _link(source: Path, target: Any) -> None:
    """Gives a file a second name; renames it where the file system has no links."""
    try:
        os.link(source, os.fspath(target))
    except OSError:
        os.replace(source, os.fspath(target))
