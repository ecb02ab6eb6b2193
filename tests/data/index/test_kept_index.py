"""An index at an address: one builds it, the others take it, and it is complete or absent."""

import shutil

import pytest

from imagewam_jax.data.index import kept_index
from imagewam_jax.data.index.build import build_index
from imagewam_jax.data.index.dataset_index import META_FILE, open_index
from imagewam_jax.data.index.kept_index import index_here
from imagewam_jax.errors import DataError
from imagewam_jax.storage.folders import CACHE
from imagewam_jax.storage.objects import as_path
from tests.training.tiny import SAMPLE


@pytest.fixture
def place(bucket, request, tmp_path, monkeypatch):
    """An address for an index, and a folder of the test's own for what this machine keeps of it."""
    monkeypatch.setenv(CACHE, str(tmp_path / "first machine"))
    bucket.behave()
    yield as_path(bucket.address(f"index/{request.node.name}"))
    bucket.behave()


@pytest.fixture
def another_machine(tmp_path, monkeypatch):
    def go():
        shutil.rmtree(tmp_path / "another machine", ignore_errors=True)
        monkeypatch.setenv(CACHE, str(tmp_path / "another machine"))

    return go


def build(place):
    with index_here(place) as here:
        return build_index(SAMPLE, here, progress=False).checksum


def test_another_machine_takes_it_and_copies_once(place, another_machine, bucket):
    expected = build(place)
    another_machine()
    with index_here(place) as here:
        assert open_index(SAMPLE, here).checksum == expected
    bucket.behave()
    with index_here(place) as here:
        assert open_index(SAMPLE, here).checksum == expected
    names = place.objects()
    assert bucket.counts()[0] <= 2 + len(names)  # their generations, and no content


def test_a_new_index_takes_the_place_of_the_old(place, another_machine, tmp_path):
    build(place)
    changed = shutil.copytree(
        SAMPLE, tmp_path / "changed" / "1.0.0", ignore=shutil.ignore_patterns("imagewam_index")
    )
    info = (changed / "dataset_info.json").read_text()
    (changed / "dataset_info.json").write_text(info.replace('"1.0.0"', '"1.0.1"'))
    with index_here(place) as here:
        rebuilt = build_index(changed, here, progress=False)
    another_machine()
    with index_here(place) as here:
        assert open_index(changed, here).checksum == rebuilt.checksum


def test_it_is_complete_or_absent(place, another_machine, monkeypatch):
    """The process ends while it copies."""

    def written(path, content):
        if path.name.startswith("episode"):
            raise KeyboardInterrupt
        return write(path, content)

    write = kept_index.ObjectPath.write_bytes
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(kept_index.ObjectPath, "write_bytes", written)
        build(place)
    assert place.objects() and META_FILE not in place.objects()
    another_machine()
    with (
        pytest.raises(DataError, match=rf"^{place}: no index of .* --output='{place}'$"),
        index_here(place) as here,
    ):
        open_index(SAMPLE, here)
    expected = build(place)
    another_machine()
    with index_here(place) as here:
        assert open_index(SAMPLE, here).checksum == expected


def test_what_cannot_be_kept_there_serves_here(place, bucket, capsys):
    with index_here(place) as here:
        index = build_index(SAMPLE, here, progress=False)
        bucket.behave(answers=[403])
    bucket.behave()
    assert f"the index is in {here} alone" in capsys.readouterr().err
    assert place.objects() == []
    with index_here(place) as here:
        assert open_index(SAMPLE, here).checksum == index.checksum
