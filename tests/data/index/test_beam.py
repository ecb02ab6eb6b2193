"""The index as a Beam pipeline, run by Beam's local runner."""

import sys

import pytest

from imagewam_jax.data.index.beam import build_index_with_beam
from imagewam_jax.data.index.build import build_index
from imagewam_jax.errors import DataError
from tests.data.conftest import flip_byte
from tests.data.write_records import bytes_list, float_list, write_set

FEATURES = {"x": {"tensor": {"dtype": "float32", "shape": {}}}, "word": {"text": {}}}


@pytest.fixture
def folder(tmp_path):
    shards = [
        [{"steps/x": float_list(n, 2), "steps/word": bytes_list(b"a", bytes([n]))}]
        for n in range(1, 5)
    ]
    return write_set(tmp_path, FEATURES, shards)


def test_it_is_the_same_index(folder, tmp_path):
    pytest.importorskip("apache_beam")
    plain = build_index(folder, tmp_path / "plain", progress=False)
    beam = build_index_with_beam(folder, tmp_path / "beam")
    assert beam.checksum == plain.checksum
    files = [p.relative_to(tmp_path / "plain") for p in (tmp_path / "plain").rglob("*.*")]
    assert files
    for file in files:
        assert (tmp_path / "beam" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_a_worker_s_error_names_the_shard(folder):
    pytest.importorskip("apache_beam")
    flip_byte(folder / "made-train.tfrecord-00002-of-00004", 20)
    with pytest.raises(DataError, match=r"train.tfrecord-00002-of-00004: .*their checksum"):
        build_index_with_beam(folder)


def test_without_beam_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(DataError, match=r"pip install 'imagewam-jax\[beam\]'"):
        build_index_with_beam(folder)
