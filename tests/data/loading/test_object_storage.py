"""Datasets at gs:// addresses: what is read of them is what is read of the files."""

import contextlib
import itertools
import os

import numpy as np
import pytest

from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import open_index
from imagewam_jax.data.loading.loader import TrainIterator
from imagewam_jax.errors import DataError
from imagewam_jax.storage.objects import as_path, generations
from imagewam_jax.storage.ranges import Range, open_to_read, read_ranges, start_reading, starts
from tests.buckets import CUT, HALF
from tests.data.toy import toy_data


@pytest.fixture
def well(bucket):
    """The bucket, which each test finds fast and in order."""
    bucket.behave()
    yield bucket
    bucket.behave()


@pytest.fixture
def address(well, toy):
    return well.put_folder(toy.dataset_dir, f"sets/{os.urandom(4).hex()}/toy_arm/1.0.0")


def batches(data, count, seed=3):
    stream = TrainIterator(data.sources("train"), global_batch=6, seed=seed)
    with contextlib.closing(stream):
        return list(itertools.islice(stream, count))


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_addresses_and_paths(tmp_path):
    assert as_path(f"file://{tmp_path}") == as_path(str(tmp_path)) == as_path(tmp_path) == tmp_path
    place = as_path("gs://bucket/sets")
    assert as_path(place) is place and str(place / "toy" / "1.0.0") == "gs://bucket/sets/toy/1.0.0"
    with pytest.raises(DataError, match=r"az://a/b: an address of another kind than gs://, s3://"):
        as_path("az://a/b")


def test_an_object_is_read_as_a_file_is(well, tmp_path):
    content = np.random.default_rng(0).bytes(40_000_000)
    (tmp_path / "file").write_bytes(content)
    well.put("an/object", content)
    spans = [(0, 10), (39_999_990, 10), (20_000_000, 3_000_000)]
    expected = [content[offset : offset + length] for offset, length in spans]
    for path in (tmp_path / "file", as_path(well.address("an/object"))):
        assert read_ranges(path, spans) == expected
        assert starts([path, path], 64) == [content[:64]] * 2
        with open_to_read(path) as file:
            assert file.read(3) + file.read() == content


def test_the_same_index_and_the_same_batches(well, address, toy, toy_copy, toy_index, tmp_path):
    """The index of objects is that of the files, and each serves the other."""
    index = build_index(address, tmp_path / "toy_arm", progress=False)
    assert index.checksum == toy_index.checksum
    remote = toy_data(address, index_directory=str(tmp_path))
    expected = batches(toy_data(toy.dataset_dir), 12)
    assert_same(batches(remote, 12), expected)

    of_files = open_index(address, toy_copy / "imagewam_index")
    assert of_files.checksum == index.checksum
    assert len(of_files.split("train").generations) == 3


def test_an_index_compares_what_was_written_since(well, address, toy, tmp_path):
    build_index(address, tmp_path / "index", progress=False)
    well.behave()
    open_index(address, tmp_path / "index")
    requests, _ = well.counts()
    shards = len(list(toy.dataset_dir.glob("*.tfrecord-*")))
    assert requests == shards  # the generation of each, and none of its records

    shard = "toy_arm-train.tfrecord-00001-of-00003"
    name = f"{address.removeprefix(well.address(''))}/{shard}"
    well.put(name, (toy.dataset_dir / shard).read_bytes())
    open_index(address, tmp_path / "index")  # another generation, the same records
    damaged = bytearray((toy.dataset_dir / shard).read_bytes())
    damaged[-1] ^= 1
    well.put(name, bytes(damaged))
    with pytest.raises(DataError, match=rf"{shard}: its records have the checksum .* replaced"):
        open_index(address, tmp_path / "index")
    well.remove(name)
    with pytest.raises(DataError, match=rf"{shard}: missing, but it is indexed"):
        open_index(address, tmp_path / "index")


def test_slow_and_failing_requests_change_nothing(well, address, toy, tmp_path):
    """50 ms a request and as much within its content; one in twenty ends with an error, without an
    answer or in the middle of it."""
    build_index(address, tmp_path / "toy_arm", progress=False)
    well.behave(seconds=0.05, body_seconds=0.05, every=20, answers=[503, CUT, 429, HALF])
    remote = batches(toy_data(address, index_directory=str(tmp_path)), 6)
    requests, _ = well.counts()
    assert requests > 60
    assert_same(remote, batches(toy_data(toy.dataset_dir), 6))


def test_ranges_are_read_together(well):
    """32 ranges that lie too far apart for one request."""
    well.put("apart", bytes(32 * 10_000))
    with pytest.raises(DataError, match=r"data.concurrent_reads is 0, expected 1"):
        start_reading([Range(as_path(well.address("apart")), 0, 1)], 0)
    path = as_path(well.address("apart"))
    ranges = [Range(path, 10_000 * n, 100) for n in range(32)]
    for concurrent in (1, 16):
        well.behave(seconds=0.2)
        assert [read() for read in start_reading(ranges, concurrent)] == [bytes(100)] * 32
        requests, most = well.counts()
        assert requests == 32 and concurrent / 2 <= most <= concurrent


def test_neighbours_are_one_request(well):
    """100,000 ranges of 64 objects: few requests, and nothing is left open."""
    for number in range(64):
        well.put(f"near/{number}", bytes(100_000))
    paths = [as_path(well.address(f"near/{number}")) for number in range(64)]
    well.behave()
    files = len(os.listdir("/proc/self/fd"))
    ranges = [Range(path, 60 * n, 60) for path in paths for n in range(1563)]
    assert sum(len(read()) for read in start_reading(ranges)) == 60 * 64 * 1563
    requests, _ = well.counts()
    assert requests <= 2 * 64
    assert len(os.listdir("/proc/self/fd")) <= files + 64 + 10  # connections are kept


def test_an_object_that_is_written_anew_in_mid_run(well, address, toy, tmp_path):
    data = toy_data(address, index_directory=str(tmp_path))
    stream = TrainIterator(data.sources("train"), global_batch=6, seed=0, bad_share=1.0)
    with contextlib.closing(stream):
        next(stream)
        for shard in toy.dataset_dir.glob("*-train.*"):
            name = f"{address.removeprefix(well.address(''))}/{shard.name}"
            well.put(name, shard.read_bytes())
        with pytest.raises(DataError, match=r"gs://.*-of-00003: was written anew since"):
            for _ in range(30):
                next(stream)


def test_an_object_that_is_removed_in_mid_run(well, address, toy, tmp_path):
    data = toy_data(address, index_directory=str(tmp_path))
    reader = data["toy_arm"].reader("val")
    for shard in toy.dataset_dir.glob("*-val.*"):
        well.remove(f"{address.removeprefix(well.address(''))}/{shard.name}")
    with pytest.raises(DataError, match=r"gs://.*-val.*: there is no such object, or no longer"):
        reader.read(np.arange(3))


@pytest.mark.parametrize(("status", "problem"), [(403, "PERMISSION_DENIED"), (401, "Unauthorized")])
def test_a_storage_that_refuses(well, address, tmp_path, status, problem):
    path = as_path(f"{address}/features.json")
    well.behave(answers=[status])
    with pytest.raises(DataError, match=rf"^gs://.*features.json, bytes 0 to 5: .*: {problem}"):
        start_reading([Range(path, 0, 5)])[0]()
    with pytest.raises(DataError, match=rf"^{address}: cannot be listed: .*{problem}"):
        as_path(address).is_dir()
    with pytest.raises(DataError, match=rf"^gs://.*/features.json: .*{problem}") as refused:
        build_index(address, tmp_path / "index", progress=False)
    assert "\n" not in str(refused.value)


def test_what_is_not_there(well, tmp_path):
    place = well.address("no/such/set")
    with pytest.raises(DataError, match=rf"{place}: no such folder, expected the dataset"):
        toy_data(place, index_directory=str(tmp_path))
    with pytest.raises(DataError, match=rf"{place}: not a TFDS version folder: no features.json"):
        build_index(place, tmp_path / "index")
    with pytest.raises(DataError, match=r"gs://no-such-bucket/sets.*: cannot be listed: .*"):
        toy_data("gs://no-such-bucket/sets", index_directory=str(tmp_path))
    for bucket in ("", "b", "Not_A_Bucket"):
        with pytest.raises(DataError, match=rf"the bucket '{bucket}': .*Invalid GCS bucket name"):
            toy_data(f"gs://{bucket}/sets", index_directory=str(tmp_path))
    assert generations([as_path(well.address("nothing"))]) == [""]


def test_nothing_is_added_to_a_folder_of_objects_unasked(well, address):
    with pytest.raises(DataError, match=r"gs://.*: say where its index is .* data.index_directory"):
        toy_data(address)
    with pytest.raises(DataError, match=r"gs://.*: say where its index is .* --output"):
        build_index(address)


def test_array_records_are_read_from_disks_alone(well, cameras, tmp_path):
    address = well.put_folder(cameras["cameras_array"].dataset_dir, "sets/cameras_array/1.0.0")
    with pytest.raises(DataError, match=r"gs://.*: ArrayRecord, which is read from file systems"):
        build_index(address, tmp_path / "index", progress=False)
