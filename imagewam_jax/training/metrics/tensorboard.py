"""Scalars as TensorBoard event files: TFRecord files of small protocol buffers.

Written out, since the libraries that write them import TensorFlow or PyTorch where these are
installed.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from imagewam_jax.data.index.tfrecord import masked_crc32c


class EventFile:
    """A new event file in a folder. What the folder has of `first_step` and later, from a run
    that was killed, is not shown."""

    def __init__(self, folder: Path, *, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("wb")
        self._write(_bytes_field(3, b"brain.Event:2"))  # file_version
        self._write(_int_field(2, first_step) + _bytes_field(7, _int_field(1, 1)))  # a new start

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        number = b"\x15" + struct.pack("<f", value)  # field 2, a float
        summary = _bytes_field(1, _bytes_field(1, tag.encode()) + number)
        self._write(_int_field(2, step) + _bytes_field(5, summary))

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """A row of numbers, under <kind>/<name>; it can be seen at once."""
        for name, value in values.items():
            self.add_scalar(f"{kind}/{name}", value, step)
        self.flush()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, fields: bytes) -> None:
        event = b"\x09" + struct.pack("<d", time.time()) + fields  # field 1, a double
        length = struct.pack("<Q", len(event))
        checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, event))
        self._file.write(length + next(checksums) + event + next(checksums))


def _int_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    """Seven bits at a time, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
