"""The rows of an episode from a parquet file, checked against info.json, as NumPy columns."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imagewam_jax.data.tools.lerobot.folder import Episode, Feature
from imagewam_jax.data.tools.lerobot.layout import Layout
from imagewam_jax.errors import DataError

# Rows read at once. With images in the table, this bounds the memory beside the episode itself.
_BATCH_ROWS = 64


class ParquetRows:
    """One parquet file. Reading episodes in their order costs one pass over it."""

    def __init__(self, file: Path, layout: Layout, *, images: bool = True):
        """DataError: the columns of the file are not those of info.json."""
        if not file.is_file():
            raise DataError(f"{file}: missing")
        try:
            self._parquet = pq.ParquetFile(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{file}: not a parquet file: {error}") from error
        self.file = file
        self._features = {k: f for k, f in layout.read.items() if images or not f.is_image}
        self._check_columns(layout)
        self._episode_of_row = _numbers(
            self._parquet.read(columns=["episode_index"]).column(0),
            layout.read["episode_index"],
            f"{file}: 'episode_index'",
        ).reshape(-1)
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._next_row = len(self._episode_of_row)  # the one after the batches read so far
        self._held: pa.Table | None = None  # rows before `_next_row` that are not given out yet

    def episode(self, episode: Episode) -> dict[str, Any]:
        """Reads the columns of an episode, by LeRobot key.

        Numbers are arrays [steps, *shape] of the declared dtype; strings are lists; images lists
        of {"bytes", "path"}, or uint8 [steps, height, width, channels].

        DataError names the file, the column and what is wrong with it.
        """
        start = self._find(episode)
        table = self._take(start, start + episode.length)
        columns: dict[str, Any] = {}
        for key, feature in self._features.items():
            where = f"{self.file}: episode {episode.index}: {key!r}"
            column = table.column(key)
            if feature.array_shape:
                columns[key] = _pixels(column, feature, where)
            elif feature.is_image or feature.dtype == "string":
                columns[key] = _whole(column, where).to_pylist()
            else:
                columns[key] = _numbers(column, feature, where)
        self._check_row_numbers(columns, episode)
        return columns

    def _check_columns(self, layout: Layout) -> None:
        found = set(self._parquet.schema_arrow.names)
        missing = sorted(set(self._features) - found)
        if missing:
            raise DataError(f"{self.file}: no column {missing}, which info.json lists")
        # A video may also be a column of references to frames. pandas may add an index of its own.
        extra = sorted(
            name
            for name in found - set(layout.features) - set(layout.skip)
            if not name.startswith("__index_level_")
        )
        if extra:
            raise DataError(
                f"{self.file}: the columns {extra} are not in info.json, which lists "
                f"{sorted(layout.features)}; leave them out with skip"
            )

    def _find(self, episode: Episode) -> int:
        rows = np.flatnonzero(self._episode_of_row == episode.index)
        if len(rows) != episode.length:
            raise DataError(
                f"{self.file}: {len(rows)} rows of episode {episode.index}, expected "
                f"{episode.length} as in meta/; it has {len(self._episode_of_row)} rows, of "
                f"episodes {_some(np.unique(self._episode_of_row))}"
            )
        if rows[-1] - rows[0] + 1 != len(rows):
            raise DataError(f"{self.file}: the rows of episode {episode.index} are not together")
        return int(rows[0])

    def _take(self, start: int, stop: int) -> pa.Table:
        held = 0 if self._held is None else self._held.num_rows
        if not self._next_row - held <= start <= self._next_row or self._held is None:
            self._open_at(start)
        pieces = [self._held] if self._held is not None else []
        first = self._next_row - sum(piece.num_rows for piece in pieces)
        while self._next_row < stop:
            batch = pa.Table.from_batches([next(self._batches)])
            self._next_row += batch.num_rows
            if self._next_row > start:
                pieces.append(batch)
            else:
                first = self._next_row
        table = pa.concat_tables(pieces)
        self._held = table.slice(stop - first)
        return table.slice(start - first, stop - start)

    def _open_at(self, row: int) -> None:
        """Starts to read at the row group that holds a row."""
        metadata = self._parquet.metadata
        group, first = 0, 0
        while first + metadata.row_group(group).num_rows <= row:
            first += metadata.row_group(group).num_rows
            group += 1
        self._batches = self._parquet.iter_batches(
            batch_size=_BATCH_ROWS,
            row_groups=list(range(group, metadata.num_row_groups)),
            columns=list(self._features),
        )
        self._next_row = first
        self._held = None

    def _check_row_numbers(self, columns: Mapping[str, Any], episode: Episode) -> None:
        numbers = columns.get("frame_index")
        if numbers is not None and (numbers.reshape(-1) != np.arange(episode.length)).any():
            raise DataError(
                f"{self.file}: episode {episode.index}: frame_index is not 0 to "
                f"{episode.length - 1} in order, so its rows cannot be matched with frames"
            )


def _whole(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    if column.null_count:
        raise DataError(f"{where}: {column.null_count} of {len(column)} rows have no value")
    return column


def _numbers(column: pa.ChunkedArray, feature: Feature, where: str) -> np.ndarray:
    """Converts a column to an array [rows, *shape] of the declared dtype.

    A shape (1,) may be stored as plain numbers.
    """
    rows = len(column)
    array = _whole(column, where).combine_chunks()
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    shape: list[int] = []
    while _is_list(array.type):
        lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
        if np.min(lengths) != np.max(lengths):
            raise DataError(
                f"{where}: rows of {np.min(lengths):.0f} to {np.max(lengths):.0f} numbers, "
                f"expected the shape {feature.shape} of info.json"
            )
        shape.append(int(lengths[0]))
        array = array.flatten()
        if array.null_count:
            raise DataError(f"{where}: {array.null_count} numbers are missing")
    if tuple(shape) != feature.shape and not (not shape and feature.shape == (1,)):
        raise DataError(
            f"{where}: the shape is {tuple(shape)}, expected {feature.shape} as in info.json"
        )
    values = array.to_numpy(zero_copy_only=False)
    return _cast(values, feature, where).reshape(rows, *feature.shape)


def _pixels(column: pa.ChunkedArray, feature: Feature, where: str) -> np.ndarray:
    """An image column of arrays, as uint8 [rows, height, width, channels]."""
    stored = dataclasses.replace(feature, shape=feature.array_shape)
    pixels = _numbers(column, stored, where)
    return pixels if feature.array_shape == feature.shape else np.moveaxis(pixels, 1, -1)


def _is_list(kind: pa.DataType) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(is_kind(kind) for is_kind in kinds)


def _cast(values: np.ndarray, feature: Feature, where: str) -> np.ndarray:
    """Converts to the declared dtype. Only floats may be rounded, to a declared smaller float."""
    wanted = np.dtype(feature.dtype)
    if values.dtype == wanted:
        return values
    with np.errstate(all="ignore"):
        cast = values.astype(wanted) if values.dtype.kind in "fiub" else None
    both_float = values.dtype.kind == "f" and wanted.kind == "f"
    if cast is None or not (both_float or np.array_equal(cast.astype(values.dtype), values)):
        raise DataError(
            f"{where}: stored as {values.dtype}, which is not {feature.dtype} as in info.json"
        )
    return cast


def _some(values: np.ndarray) -> str:
    listed = values.tolist()
    return str(listed) if len(listed) < 8 else f"{listed[0]} to {listed[-1]}"
