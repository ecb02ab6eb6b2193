"""Reading byte ranges of many shards."""

import resource

import pytest

from imagewam_jax.data.errors import DataError
from imagewam_jax.data.frames import ShardFiles


def test_ranges_of_several_files(tmp_path):
    paths = tuple(tmp_path / str(number) for number in range(3))
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 10 + b"end")
    files = ShardFiles(paths)
    assert files.read(2, 8, 4) == b"\x02\x02en"
    assert files.read(0, 0, 2) == b"\x00\x00"
    assert files.read(1, 11, 100) == b"nd"
    files.close()
    assert files.read(2, 8, 4) == b"\x02\x02en"
    files.close()


def test_many_shards_raise_the_open_file_limit(monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 8192))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    ShardFiles(("x",) * 512)
    assert limits == []
    ShardFiles(("x",) * 2048)
    assert limits == [(4096, 8192)]
    with pytest.raises(DataError, match=r"5000 shards need an open-file limit of 10000, .* 8192"):
        ShardFiles(("x",) * 5000)
