"""Reading byte ranges of many shards."""

from imagewam_jax.data.loading.decode import Shards


def test_ranges_of_several_files(tmp_path):
    paths = tuple(tmp_path / str(number) for number in range(3))
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * 10 + b"end")
    files = Shards(paths)
    assert files.read(2, 8, 4) == b"\x02\x02en"
    assert files.read(0, 0, 2) == b"\x00\x00"
    assert files.read(1, 11, 100) == b"nd"
    files.close()
    assert files.read(2, 8, 4) == b"\x02\x02en"
    files.close()
