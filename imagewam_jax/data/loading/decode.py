"""Reads and decodes single images out of shards by their indexed byte ranges."""

import functools
import io
import os
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import google_crc32c
import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image

from imagewam_jax.data.dataset_spec import Camera
from imagewam_jax.data.index.array_record import ArrayRecordFile
from imagewam_jax.data.index.columns import ImageColumn
from imagewam_jax.data.index.dataset_index import SplitIndex
from imagewam_jax.data.index.raw_images import as_rgb, decode_pixels
from imagewam_jax.data.index.records import ARRAY_RECORD
from imagewam_jax.data.index.shard_columns import PNG_START
from imagewam_jax.errors import BadFrameError, DataError
from imagewam_jax.files import check_open_files
from imagewam_jax.storage.objects import CONCURRENT_READS, AnyPath
from imagewam_jax.storage.ranges import Range, start_reading


class Shards:
    """Random reads from shards, files of which are opened once, on first use. Safe to use from
    threads.

    generations: of shards that are objects, what each is to be.
    concurrent_reads: how many requests for objects are under way at a time, of all this process's.
    """

    def __init__(
        self,
        paths: tuple[AnyPath, ...],
        generations: tuple[str, ...] = (),
        concurrent_reads: int = CONCURRENT_READS,
    ):
        self._paths, self._generations = paths, generations
        self._concurrent_reads = concurrent_reads
        self._descriptors: dict[int, int] = {}
        self._record_files: dict[int, ArrayRecordFile] = {}
        self._lock = threading.Lock()
        self._last = threading.local()

    def start(self, ranges: Sequence[tuple[int, int, int]]) -> list[Callable[[], bytes]]:
        """Begins to read ranges of bytes (shard, offset, length), and returns for each a function
        that waits for its bytes.

        Objects are read all at once, a file when its function is called. At the end of a file,
        fewer bytes come back. DataError, from the functions: an object cannot be read, or is
        another than it was.
        """
        if not self._generations:
            return [functools.partial(self.read, *place) for place in ranges]
        wanted = (
            Range(self._paths[shard], offset, length, self._generations[shard])
            for shard, offset, length in ranges
        )
        return start_reading(wanted, self._concurrent_reads)

    def read(self, shard: int, offset: int, length: int) -> bytes:
        """Reads a range of bytes of a file."""
        descriptor = self._descriptors.get(shard)
        if descriptor is None:
            with self._lock:
                descriptor = self._descriptors.get(shard)
                if descriptor is None:
                    self._descriptors[shard] = descriptor = self._open(self._paths[shard])
        return os.pread(descriptor, length, offset)

    def read_record(self, shard: int, number: int) -> bytes:
        """Reads a whole record of an ArrayRecord shard. OSError: it is damaged.

        Each thread keeps the record that it read last: a sample takes all its images from one.
        """
        if getattr(self._last, "place", None) != (shard, number):
            with self._lock:
                file = self._record_files.get(shard)
                if file is None:
                    file = self._record_files[shard] = ArrayRecordFile(self._paths[shard])
            self._last.place, self._last.record = None, file.read(number)
            self._last.place = (shard, number)
        return self._last.record

    @staticmethod
    def _open(path: AnyPath) -> int:
        try:
            return os.open(path, os.O_RDONLY)
        except OSError as error:
            check_open_files(error)
            raise

    def close(self) -> None:
        with self._lock:
            while self._descriptors:
                os.close(self._descriptors.popitem()[1])
            while self._record_files:
                self._record_files.popitem()[1].close()
            self._last = threading.local()


class StoredFrame(NamedTuple):
    """A frame of a camera; `encoded()` waits for the stored bytes of its image."""

    camera: Camera
    frame: int
    encoded: Callable[[], bytes]


def request_frames(
    split: SplitIndex, shards: Shards, wanted: Sequence[tuple[Camera, int]]
) -> list[StoredFrame]:
    """Begins to read the images of cameras at frames, of objects all at once."""
    places = []
    for camera, frame in wanted:
        column, episode = split.images[camera.key], int(split.frame_episode[frame])
        place = int(split.episode_shard[episode]), int(column.offset[frame])
        places.append((*place, int(column.length[frame])))
    if split.file_format == ARRAY_RECORD:
        reads = [
            functools.partial(_read_in_record, split, shards, frame, *place)
            for (_, frame), place in zip(wanted, places, strict=True)
        ]
    else:
        started = iter(shards.start([place for place in places if place[-1]]))
        reads = [next(started) if length else bytes for *_, length in places]
    return [StoredFrame(*one, read) for one, read in zip(wanted, reads, strict=True)]


def _read_in_record(
    split: SplitIndex, shards: Shards, frame: int, shard: int, offset: int, length: int
) -> bytes:
    record = shards.read_record(shard, split.record_number(int(split.frame_episode[frame])))
    return record[offset : offset + length]


def decode_frame(
    split: SplitIndex, stored: StoredFrame, out: UInt8[np.ndarray, "h w 3"]
) -> tuple[int, int]:
    """Decodes a frame of a camera into `out` and returns the image's height and width.

    `out` is a contiguous buffer. The upright RGB image fills its top left, the rest becomes black.
    Where no image is stored, of zero bytes, all is black, as for a camera that is missing, and the
    size is that of the episode's images, or of the buffer if it has none.

    Raises BadFrameError, naming the file, episode and step, when the stored bytes differ from their
    checksum, are neither JPEG nor PNG, or the image has another size than its episode's first.
    DataError: an object cannot be read.
    """
    camera, frame, read = stored
    column = split.images[camera.key]
    expected = tuple(column.size_ehw[int(split.frame_episode[frame])].tolist())
    if not column.length[frame]:
        out[:] = 0
        return expected if all(expected) else out.shape[:2]
    try:
        encoded = read()
    except OSError as error:
        raise bad_frame(split, camera.key, frame, f"its record: {error}") from error
    if google_crc32c.value(encoded) != column.crc32c[frame]:
        raise bad_frame(split, camera.key, frame, "its bytes differ from their checksum")
    kind, decode = ("PNG", _decode_png) if encoded.startswith(PNG_START) else ("JPEG", _decode_jpeg)
    try:
        if column.encoding:
            kind = "a uint8 tensor"
            height, width = _decode_raw(encoded, column, camera, out)
        else:
            height, width = decode(encoded, camera, out)
    # Pillow raises all of these, the decoder of tensors a DataError.
    except (ValueError, OSError, SyntaxError, DataError) as error:
        what = f"cannot be decoded as {kind}: {error}"
        raise bad_frame(split, camera.key, frame, what) from error
    if (height, width) != expected:  # the size of an image is taken from its episode
        what = f"is {height}x{width}, its episode's first image {expected[0]}x{expected[1]}"
        raise bad_frame(split, camera.key, frame, what)
    out[height:] = 0
    out[:height, width:] = 0
    return height, width


def _decode_jpeg(encoded: bytes, camera: Camera, out: np.ndarray) -> tuple[int, int]:
    height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    _check_size(height, width, out)
    # Reversing the bytes turns the image by 180 degrees and reverses the order of its channels.
    order = "BGR" if camera.bgr != camera.upside_down else "RGB"
    whole = (height, width) == out.shape[:2]
    image = simplejpeg.decode_jpeg(encoded, colorspace=order, buffer=out if whole else None)
    if camera.upside_down:
        _reverse_bytes(out if whole else image)
    if not whole:
        out[:height, :width] = image
    return height, width


def _reverse_bytes(image: UInt8[np.ndarray, "h w 3"]) -> None:
    """Reverses in place, by words of 8 bytes where they fit: ten times as fast as [::-1, ::-1]."""
    flat = image.reshape(-1)
    if flat.size % 8:
        flat[:] = flat[::-1].copy()
    else:
        words = flat.view(np.uint64)
        words[:] = words[::-1].byteswap()


def _decode_png(encoded: bytes, camera: Camera, out: np.ndarray) -> tuple[int, int]:
    with Image.open(io.BytesIO(encoded), formats=["PNG"]) as file:
        width, height = file.size
        _check_size(height, width, out)
        image = np.asarray(file.convert("RGB"))
    _put_upright(image, camera, out)
    return height, width


def _decode_raw(
    encoded: bytes, column: ImageColumn, camera: Camera, out: np.ndarray
) -> tuple[int, int]:
    height, width, _ = column.shape
    _check_size(height, width, out)
    _put_upright(as_rgb(decode_pixels(encoded, column.encoding, column.shape)), camera, out)
    return height, width


def _put_upright(image: UInt8[np.ndarray, "h w 3"], camera: Camera, out: np.ndarray) -> None:
    height, width, _ = image.shape
    image = image[..., ::-1] if camera.bgr else image
    out[:height, :width] = image[::-1, ::-1] if camera.upside_down else image


def _check_size(height: int, width: int, out: np.ndarray) -> None:
    if height > out.shape[0] or width > out.shape[1]:
        raise ValueError(f"{height}x{width}, expected at most {out.shape[0]}x{out.shape[1]}")


def bad_frame(split: SplitIndex, key: str, frame: int, what: str) -> BadFrameError:
    """An error about the image of a camera at a frame, which says where it is stored."""
    where = split.describe_frame(frame)
    return BadFrameError(
        f"bad image {key!r} in {where}, byte {split.images[key].offset[frame]}: {what}"
    )
