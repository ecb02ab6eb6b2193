"""The kinds of columns that an index holds. A column has one row per step, or per episode.

`column[rows]` takes a slice or an integer array and gives the values [n, ...] in the dtype that
features.json declares; texts are object arrays of bytes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable
from typing import ClassVar, Protocol
from urllib.parse import quote

import numpy as np
from jaxtyping import Int32, Int64, UInt32

# Features of at least this many numbers per step store distinct rows once: sentence embeddings, and
# instructions as integers, are wide and constant over an episode.
CODED_WIDTH = 64
# Wider features, such as point clouds and depth images stored as tensors, are not indexed.
MAX_WIDTH = 4096

Rows = slice | np.ndarray


class Column(Protocol):
    kind: ClassVar[str]

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Rows) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Dense:
    """Row i is values[i]; the values [n, ...] are mapped from the file."""

    values: np.ndarray
    kind: ClassVar[str] = "dense"

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Rows) -> np.ndarray:
        return np.asarray(self.values[rows])


@dataclasses.dataclass(frozen=True, eq=False)
class Coded:
    """Row i is rows[ids[i]], so that distinct rows [distinct, ...] are stored once."""

    ids: Int32[np.ndarray, " n"]
    rows: np.ndarray
    kind: ClassVar[str] = "coded"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Rows) -> np.ndarray:
        return np.asarray(self.rows[self.ids[rows]])


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """Row i is texts[ids[i]]; ids has more than one axis for tensors of strings.

    The texts are distinct and in order of appearance. They are the stored bytes, which need not be
    UTF-8.
    """

    ids: Int32[np.ndarray, "n ..."]
    texts: tuple[bytes, ...]
    kind: ClassVar[str] = "text"

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Rows) -> np.ndarray:
        return self._table[self.ids[rows]]

    @functools.cached_property
    def _table(self) -> np.ndarray:
        table = np.empty(len(self.texts), object)
        table[:] = self.texts
        return table


@dataclasses.dataclass(frozen=True, eq=False)
class Ragged:
    """Row i is values[row_start[i] : row_start[i + 1]], an array [any, ...].

    `values` is a Dense or a Text column. Several rows are an object array of arrays.
    """

    values: Dense | Text
    row_start: Int64[np.ndarray, " starts"]
    kind: ClassVar[str] = "ragged"

    def __len__(self) -> int:
        return len(self.row_start) - 1

    def __getitem__(self, rows: Rows) -> np.ndarray:
        numbers = np.arange(len(self))[rows]
        out = np.empty(len(numbers), object)
        for i, number in enumerate(numbers):
            out[i] = self.values[int(self.row_start[number]) : int(self.row_start[number + 1])]
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class ImageColumn:
    """Where the encoded images of one camera lie: a byte range in each frame's shard.

    In a shard whose records are compressed it is a byte range in each frame's record.

    size_ehw: (height, width) of each episode's images, from the header of its first image that is
      a JPEG or a PNG; (0, 0) when none is.
    shape: (height, width, channels) as features.json declares them; -1 where it leaves them open.
    dtype: type of the decoded pixels, "uint8" unless it is a depth image.
    encoding: "" when the bytes are a file, such as a JPEG; otherwise how pixels are stored as
      numbers, one of `features.RAW_ENCODINGS`.
    """

    offset: Int64[np.ndarray, " frames"]
    length: Int32[np.ndarray, " frames"]
    crc32c: UInt32[np.ndarray, " frames"]
    size_ehw: Int32[np.ndarray, "episodes 2"]
    shape: tuple[int, ...]
    dtype: str
    encoding: str = ""

    def __len__(self) -> int:
        return len(self.offset)


def file_stem(key: str) -> str:
    """A file name for a feature's key: readable, and different for different keys."""
    return quote(key, safe="").replace(".", "%2E").replace("%2F", ".")


def pack_texts(texts: Iterable[bytes]) -> dict[str, np.ndarray]:
    """Texts as two arrays: their bytes end to end, and where each starts, then the last end."""
    texts = list(texts)
    ends = np.cumsum([0, *(len(text) for text in texts)], dtype=np.int64)
    return {"texts": np.frombuffer(b"".join(texts), np.uint8), "text_start": ends}


def unpack_texts(texts: np.ndarray, text_start: np.ndarray) -> tuple[bytes, ...]:
    data = texts.tobytes()
    return tuple(data[start:end] for start, end in itertools.pairwise(text_start.tolist()))
