"""Reads and decodes single images out of TFRecord shards by their indexed byte ranges."""

import os
import resource
import threading
from pathlib import Path

import google_crc32c
import numpy as np
import simplejpeg
from jaxtyping import UInt8

from imagewam_jax.data.errors import BadFrameError, DataError
from imagewam_jax.data.index import SplitIndex


class ShardFiles:
    """Random reads from shards that are opened once, on first use. Safe to use from threads."""

    def __init__(self, paths: tuple[Path, ...]):
        _allow_open_files(len(paths))
        self._paths = paths
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """The bytes of that range; fewer at the end of the file."""
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            with self._lock:
                descriptor = self._descriptors.get(shard)
                if descriptor is None:
                    descriptor = os.open(self._paths[shard], os.O_RDONLY)
                    self._descriptors[shard] = descriptor
        return os.pread(descriptor, length, offset)

    def close(self) -> None:
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])


def _allow_open_files(count: int) -> None:
    """Raises this process's soft limit of open files when the shards alone would use half of it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * count
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise DataError(
            f"{count} shards need an open-file limit of {wanted}, the hard limit is {hard} "
            "(ulimit -Hn)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def decode_frame(
    split: SplitIndex, files: ShardFiles, key: str, frame: int, out: UInt8[np.ndarray, "h w 3"]
) -> None:
    """Decodes one frame of camera `key` into `out`, a contiguous RGB image.

    Raises BadFrameError, naming the file, episode and step, when the stored bytes differ from their
    checksum, are not a JPEG, or have another size than `out`.
    """
    column = split.images[key]
    shard = int(split.episode_shard[split.frame_episode[frame]])
    jpeg = files.read(shard, int(column.offset[frame]), int(column.length[frame]))
    if google_crc32c.value(jpeg) != column.crc32c[frame]:
        raise _bad_frame(split, key, frame, "its bytes differ from their checksum")
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        if (height, width) != out.shape[:2]:
            raise _bad_frame(split, key, frame, f"{height}x{width}, expected {out.shape[:2]}")
        simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=out)
    except ValueError as error:
        if isinstance(error, BadFrameError):
            raise
        raise _bad_frame(split, key, frame, f"not a readable JPEG: {error}") from error


def _bad_frame(split: SplitIndex, key: str, frame: int, what: str) -> BadFrameError:
    where = split.describe_frame(frame)
    return BadFrameError(
        f"bad image {key!r} in {where}, byte {split.images[key].offset[frame]}: {what}"
    )
