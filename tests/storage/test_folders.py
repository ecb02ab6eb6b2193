"""Folders and files that are written on this machine and lie in object storage."""

import pytest

from imagewam_jax.errors import DataError, InUseError, WriteError
from imagewam_jax.storage import folders
from imagewam_jax.storage.folders import file_to_write, folder_to_write, local_file
from imagewam_jax.storage.objects import as_path


@pytest.fixture
def place(bucket, request, tmp_path, monkeypatch):
    """An address, and a folder of the test's own for what this machine keeps of it."""
    monkeypatch.setenv(folders.CACHE, str(tmp_path))
    bucket.behave()
    yield as_path(bucket.address(f"folders/{request.node.name}"))
    bucket.behave()


def contents(place):
    return {name: (place / name).read_bytes() for name in place.objects()}


def test_what_is_written_lies_there_at_the_end(place):
    with folder_to_write(place, "a test", first=True) as written:
        (written.folder / "below").mkdir()
        (written.folder / "below" / "rows").write_bytes(b"1\n")
        (written.folder / ".unfinished").write_bytes(b"x")
        assert contents(place) == {}
        written.copy()
        assert contents(place) == {"below/rows": b"1\n"}
        with (written.folder / "below" / "rows").open("ab") as file:
            file.write(b"2\n")
    assert contents(place) == {"below/rows": b"1\n2\n"}


def test_the_next_finds_what_lies_there_and_no_more(place):
    (place / "checkpoints" / "8" / "params").write_bytes(b"large")
    (place / "rows").write_bytes(b"1\n")
    for kept in (b"1\n", b"1\n2\n"):
        with folder_to_write(place, "a test", first=True, leave_out="checkpoints") as written:
            rows = written.folder / "rows"
            assert [p.name for p in written.folder.iterdir() if p.name != ".lock"] == ["rows"]
            assert rows.read_bytes() == kept
            rows.write_bytes(b"1\n2\n")
    (place / "rows").unlink()
    with folder_to_write(place, "a test", first=True, leave_out="checkpoints") as written:
        assert not (written.folder / "rows").exists()
        (written.folder / "gone").write_bytes(b"x")
        written.copy()
        (written.folder / "gone").unlink()
    assert contents(place) == {"checkpoints/8/params": b"large"}


def test_it_is_copied_now_and_then(place, monkeypatch):
    monkeypatch.setattr(folders, "COPY_SECONDS", 0.05)
    with folder_to_write(place, "a test", first=True) as written:
        (written.folder / "rows").write_bytes(b"1\n")
        while not (place / "rows").is_file():
            pass


def test_one_writer_on_this_machine(place):
    with (
        folder_to_write(place, "the first", first=True),
        pytest.raises(InUseError, match="the first"),
        folder_to_write(place, "a test", first=True),
    ):
        pass


def test_other_processes_add_their_files(place):
    with (
        folder_to_write(place, "a test", first=True) as first,
        folder_to_write(place, "a test", first=False) as other,
    ):
        (first.folder / "rows").write_bytes(b"1\n")
        (other.folder / "trace").write_bytes(b"2\n")
    assert contents(place) == {"rows": b"1\n", "trace": b"2\n"}


def test_a_storage_that_refuses_is_an_error(place, bucket):
    with (
        pytest.raises(WriteError, match=r"rows: cannot be written: .*; the files are in"),
        folder_to_write(place, "a test", first=True) as written,
    ):
        (written.folder / "rows").write_bytes(b"1\n")
        bucket.behave(answers=[403])
    assert (written.folder / "rows").read_bytes() == b"1\n"


def test_the_first_error_is_the_one_that_is_told(place, bucket):
    with (
        pytest.raises(ZeroDivisionError),
        folder_to_write(place, "a test", first=True) as written,
    ):
        (written.folder / "rows").write_bytes(b"1\n")
        bucket.behave(answers=[403])
        raise ZeroDivisionError


def test_a_file_is_copied_unless_there_was_an_error(place):
    with file_to_write(place / "table") as file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"1")
    with pytest.raises(ZeroDivisionError), file_to_write(place / "table") as file:
        assert file.read_bytes() == b"1"
        file.write_bytes(b"2")
        raise ZeroDivisionError
    assert contents(place) == {"table": b"1"}
    (place / "table").unlink()
    with pytest.raises(FileNotFoundError), file_to_write(place / "table") as file:
        file.read_bytes()


def test_a_file_to_read_is_fetched_once_for_each_content(place, bucket):
    table = place / "table"
    with pytest.raises(DataError, match="there is no such object"):
        local_file(table)
    table.write_bytes(b"1")
    first = local_file(table)
    assert first.read_bytes() == b"1" and local_file(table) == first
    table.write_bytes(b"22")
    assert local_file(table).read_bytes() == b"22"
