"""Two processes that index one dataset, and Ctrl-C while processes index it."""

import os
import signal
import threading
import time

import pytest

from imagewam_jax.cli import INTERRUPTED
from imagewam_jax.data.index.build import build_index, only_builder
from imagewam_jax.data.index.dataset_index import META_FILE, default_index_dir, open_index
from imagewam_jax.data.index.shard_parts import PARTS_DIR
from imagewam_jax.data.index.tfds_folder import read_tfds_folder
from imagewam_jax.errors import InUseError
from tests.training.commands import start
from tests.training.tiny import copy_sample


@pytest.fixture
def dataset(tmp_path):
    return copy_sample(tmp_path)


def test_a_second_build_is_refused_and_a_run_waits_for_the_index(dataset, capfd):
    folder, meta = read_tfds_folder(dataset), default_index_dir(dataset) / META_FILE
    found = []

    def run():
        found.append(build_index(dataset, if_absent=True, progress=False))

    with only_builder(folder, default_index_dir(dataset)):
        with pytest.raises(InUseError, match=rf"in use by process {os.getpid()} .*\(indexing meta"):
            build_index(dataset, progress=False)
        waiting = threading.Thread(target=run)
        waiting.start()
        while "waits for process" not in capfd.readouterr().err:
            time.sleep(0.01)
    waiting.join()  # there was none when the other ended
    assert found[0].checksum == open_index(dataset).checksum
    made = meta.stat().st_mtime_ns
    run()  # and now there is one
    assert meta.stat().st_mtime_ns == made
    assert not list(dataset.glob(".*"))


def test_an_interrupt_is_one_line_and_the_next_build_goes_on(dataset, tmp_path):
    """A terminal interrupts the processes of the command too."""
    process = start("data", "index", str(dataset), "--workers=2", cache=tmp_path, new_session=True)
    parts = default_index_dir(dataset) / PARTS_DIR
    while not parts.exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == INTERRUPTED, errors
    assert errors.splitlines()[-1] == "imagewam data: ended by Ctrl-C"
    assert "Traceback" not in errors
    assert {path.name for path in dataset.glob("*imagewam_index*")} == {parts.parent.name}
    assert not (parts.parent / META_FILE).exists()
    assert build_index(dataset, progress=False).splits["train"].num_episodes > 0
