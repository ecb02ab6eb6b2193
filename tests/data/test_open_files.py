"""The limit of open files, which the shards and arrays of a mixture would go beyond."""

import subprocess
import sys
import textwrap

import pytest

from tests.training.tiny import ROOT


@pytest.mark.parametrize(
    ("soft", "hard", "says"),
    [(64, 4096, "read"), (64, 64, "64 (ulimit -Hn)")],
    ids=["raised", "too low"],
)
def test_more_shards_than_the_soft_limit(toy, tmp_path, soft, hard, says):
    """Opening an index raises it; beyond the hard one the error says what is too little."""
    program = f"""
        import resource
        resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
        from pathlib import Path
        from imagewam_jax.errors import DataError
        from imagewam_jax.data.loading.decode import Shards
        from imagewam_jax.data.index.dataset_index import open_index
        paths = tuple(Path({str(tmp_path)!r}) / str(n) for n in range(100))
        for path in paths:
            path.write_bytes(b"x")
        try:
            index = open_index({str(toy.dataset_dir)!r})
            files = Shards(paths)
            for shard in range(100):
                assert files.read(shard, 0, 1) == b"x"
            print("read")
        except DataError as error:
            print(error)
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert says in found.stdout
