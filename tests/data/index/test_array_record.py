"""ArrayRecord files as any writer makes them: groups, compressions, chunks across blocks."""

import numpy as np
import pytest
from array_record.python import array_record_module

from imagewam_jax.data.index.array_record import (
    ArrayRecordFile,
    array_framing_checksum,
    chunk_offsets,
    scan_array_records,
)
from imagewam_jax.data.index.records import file_format, scan_records
from imagewam_jax.errors import DataError
from tests.data.conftest import flip_byte
from tests.data.write_records import write_records

BLOCK = 2**16
# Empty, tiny, just one block, over several blocks, and ending just where a block header begins.
SIZES = (10, 0, 70_000, BLOCK, 3, 200_000, 1, 1, 1, 2 * BLOCK - 64, BLOCK - 24, 5)
PAYLOADS = [np.random.default_rng(n).bytes(size) for n, size in enumerate(SIZES)] + [bytes(10**5)]


def write(path, options, payloads=PAYLOADS):
    writer = array_record_module.ArrayRecordWriter(str(path), options)
    for payload in payloads:
        writer.write(payload)
    writer.close()
    return path


@pytest.mark.parametrize(
    "options",
    [
        "group_size:1",
        "group_size:3",
        "group_size:1,uncompressed",
        "group_size:2,brotli:5",
        "group_size:2,snappy",
        "group_size:4,transpose:true",
        "group_size:1,pad_to_block_boundary:true",
        "",
    ],
)
def test_records_and_chunks(tmp_path, options):
    path = write(tmp_path / "x", options)
    assert file_format(path) == "array_record"
    records = list(scan_records(path))
    assert [record.data for record in records] == PAYLOADS
    assert {record.damage for record in records} == {""} and {r.base for r in records} == {0}
    offsets = [record.offset for record in records]
    assert offsets == sorted(offsets) and offsets[0] >= 64
    group = int(options.partition("group_size:")[2][:1] or 1)
    if options:
        assert len(set(offsets)) == -(-len(PAYLOADS) // group)


def test_the_checksum_sees_any_change_of_a_record(tmp_path):
    path = write(tmp_path / "x", "group_size:1")
    offsets = np.array(chunk_offsets(path, len(PAYLOADS)))
    before = array_framing_checksum(path, offsets)
    changed = [*PAYLOADS[:5], PAYLOADS[5][:-1] + b"?", *PAYLOADS[6:]]
    other = write(tmp_path / "y", "group_size:1", changed)
    assert other.stat().st_size == path.stat().st_size
    assert chunk_offsets(other, len(PAYLOADS)) == offsets.tolist()
    assert array_framing_checksum(other, offsets) != before


def test_a_damaged_record_is_told_and_the_others_are_read(tmp_path):
    path = write(tmp_path / "x", "group_size:1")
    flip_byte(path, chunk_offsets(path, len(PAYLOADS))[5] + 1000)
    records = list(scan_array_records(path))
    assert [n for n, record in enumerate(records) if record.damage] == [5]
    assert "record 5 cannot be read: Corrupted" in records[5].damage
    assert records[6].data == PAYLOADS[6]
    with pytest.raises(OSError, match="chunk data hash mismatch"):
        ArrayRecordFile(path).read(5)


def test_files_that_are_not_whole(tmp_path):
    with pytest.raises(FileNotFoundError):
        ArrayRecordFile(tmp_path / "absent")
    path = write(tmp_path / "x", "group_size:1")
    path.write_bytes(path.read_bytes()[:-BLOCK])
    (record,) = scan_records(path)
    assert record.data is None and "not a whole ArrayRecord file" in record.damage


def test_the_content_decides_the_format(tmp_path):
    write_records(tmp_path / "x.array_record", [b"a"])
    assert file_format(tmp_path / "x.array_record") == "tfrecord"
    assert [record.data for record in scan_records(tmp_path / "x.array_record")] == [b"a"]
    for start, what in (
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git-LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page.*download it again"),
        (b"PK\x03\x04" + bytes(60), "a zip archive; unpack it"),
        (bytes(64), "zeros, as an interrupted download leaves it"),
    ):
        (tmp_path / "y").write_bytes(start)
        with pytest.raises(DataError, match=what):
            file_format(tmp_path / "y")
        (record,) = scan_records(tmp_path / "y")
        assert record.data is None and record.damage
