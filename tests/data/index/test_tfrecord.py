"""TFRecord framing and its faults."""

import gzip

import numpy as np
import pytest

from imagewam_jax.data.index.tfrecord import (
    framing_checksum,
    masked_crc32c,
    scan_records,
    walk_records,
)
from imagewam_jax.errors import DataError
from tests.data.conftest import flip_byte
from tests.data.write_records import write_records

PAYLOADS = [b"first record", b"", bytes(range(256)) * 10]


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "x.tfrecord-00000-of-00001"
    write_records(path, PAYLOADS)
    return path


def test_records_and_their_positions(shard):
    records = list(walk_records(shard))
    assert [record.data for record in records] == PAYLOADS
    data = shard.read_bytes()
    for record in records:
        assert data[record.offset : record.offset + len(record.data)] == record.data


def test_the_masked_crc_is_the_published_one():
    # The CRC-32C of "123456789" is e3069283 by definition.
    assert (
        masked_crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) % 2**32
    )


@pytest.mark.parametrize("position", range(0, 28))
def test_a_flipped_byte_names_the_file_and_the_record(shard, position):
    flip_byte(shard, position)
    with pytest.raises(DataError, match=r"x\.tfrecord-00000-of-00001: .* at byte 0 differ"):
        list(walk_records(shard))


@pytest.mark.parametrize("size, record", [(5, 0), (20, 0), (27, 0), (28 + 3, 28), (100, 44)])
def test_a_truncated_file_names_where_it_ends(shard, size, record):
    shard.write_bytes(shard.read_bytes()[:size])
    with pytest.raises(DataError, match=f"truncated at byte {size}: the record at byte {record}"):
        list(walk_records(shard))


def test_a_scan_goes_on_behind_damaged_data_and_stops_behind_a_damaged_length(shard):
    flip_byte(shard, 12)
    records = list(scan_records(shard))
    assert [bool(record.damage) for record in records] == [True, False, False]
    assert records[0].data == b"g" + PAYLOADS[0][1:]
    assert [record.data for record in records[1:]] == PAYLOADS[1:]
    flip_byte(shard, 28)
    records = list(scan_records(shard))
    assert [record.data is None for record in records] == [False, True]
    assert records[1].damage == "the record length at byte 28 differs from its checksum"


def test_a_compressed_file_is_named(shard):
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(DataError, match="gzip-compressed"):
        list(walk_records(shard))


def test_the_framing_checksum_sees_a_replaced_record_of_the_same_size(shard):
    records = list(walk_records(shard))
    offsets = np.array([record.offset for record in records])
    lengths = np.array([len(record.data) for record in records])
    before = framing_checksum(shard, offsets, lengths)
    assert framing_checksum(shard, offsets, lengths) == before
    write_records(shard, [b"First record", *PAYLOADS[1:]])
    assert framing_checksum(shard, offsets, lengths) != before
