"""Locks of folders that one process writes, and what is said of a disk that is full."""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest

from imagewam_jax.errors import InUseError, WriteError
from imagewam_jax.files import LOCK_FILE, only_writer, space_advice, writing

HOLD = """
import sys, time
from pathlib import Path
from imagewam_jax.files import only_writer
with only_writer(Path(sys.argv[1]), "holding"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_named_and_a_killed_one_holds_nothing(tmp_path):
    lock = tmp_path / "new" / LOCK_FILE
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        who = rf"process {holder.pid} on {socket.gethostname()} \(holding, since 20\d\d-\d\d-\d\d "
        with (
            pytest.raises(
                InUseError, match=rf"^{lock.parent} is in use by {who}.* UTC\): wait for"
            ),
            only_writer(lock, "writing"),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with only_writer(lock, "writing"):
        assert f"process {os.getpid()} on" in lock.read_text()
    assert list(lock.parent.iterdir()) == []


def test_one_waits_for_another_which_removes_its_file(tmp_path, capfd):
    lock, order = tmp_path / LOCK_FILE, []

    def second():
        with only_writer(lock, "second", wait=True):
            order.append("second")
            assert "second, since" in lock.read_text()

    with only_writer(lock, "first"):
        thread = threading.Thread(target=second)
        thread.start()
        while "second: waits for process" not in capfd.readouterr().err:
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "second"] and not lock.exists()


def test_folders_that_were_made_for_a_lock_are_removed_unless_something_is_in_them(tmp_path):
    with only_writer(tmp_path / "a" / "b" / LOCK_FILE, "writing"):
        pass
    assert list(tmp_path.iterdir()) == []
    with only_writer(tmp_path / "a" / "b" / LOCK_FILE, "writing"):
        (tmp_path / "a" / "kept").touch()
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["kept"]


def test_a_place_where_no_lock_can_be(tmp_path):
    (tmp_path / "file").touch()
    lock = tmp_path / "file" / LOCK_FILE
    with pytest.raises(WriteError, match=rf"^{lock}: cannot be written"), only_writer(lock, "w"):
        pass


def test_a_full_disk_is_told_with_what_to_do(small_disk):
    file = small_disk / "rows"
    message = rf"^{file}: cannot be written: .*No space left on device; free some space there$"
    with pytest.raises(WriteError, match=message), writing(file), file.open("wb") as opened:
        opened.write(bytes(10**7))
    assert space_advice(OSError(errno.EACCES, "no")) == ""
