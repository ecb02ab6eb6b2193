"""Sums of an evaluation on disk: found again, refused, and written when it is time."""

import numpy as np
import pytest

from imagewam_jax.errors import ConfigError
from imagewam_jax.evaluation import snapshot
from imagewam_jax.evaluation.snapshot import Snapshot

IDENTITY = {"step": 8, "dims": ("x", "y")}


def sums(scale: float = 1.0) -> dict[str, np.ndarray]:
    return {
        "total": scale * np.random.default_rng(0).normal(size=(3, 2)),
        "weight": np.full((), 4.0 * scale),
        "counts": np.array([7, 1]) * int(scale),
    }


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "recorded" / "set.npz"
    Snapshot(path, IDENTITY, resume=False).save(sums(), 128, at_once=True)
    return path


def test_sums_are_found_again_to_the_last_bit(written):
    found = sums(0.0)
    assert Snapshot(written, {"step": 8, "dims": ["x", "y"]}, resume=True).restore(found) == 128
    for name, expected in sums().items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)


def test_without_a_file_or_without_resume_nothing_is_done(written, tmp_path):
    for path, resume in ((written, False), (tmp_path / "absent.npz", True)):
        found = sums(0.0)
        assert Snapshot(path, IDENTITY, resume=resume).restore(found) == 0
        assert not any(x.any() for x in found.values())


def test_sums_of_another_evaluation_are_refused(written):
    other = Snapshot(written, {**IDENTITY, "step": 9}, resume=True)
    with pytest.raises(ConfigError, match=r"set.npz: sums of another .* step was 8 and is 9. Eval"):
        other.restore(sums())


@pytest.mark.parametrize("content", [b"", b"none", None], ids=["empty", "text", "cut off"])
def test_a_file_of_something_else_is_refused(written, content):
    written.write_bytes(written.read_bytes()[:-40] if content is None else content)
    with pytest.raises(ConfigError, match=r"set.npz: not the sums of an evaluation: .*; remove it"):
        Snapshot(written, IDENTITY, resume=True).restore(sums())


def test_sums_are_written_when_it_is_time(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshot, "SAVE_EVERY_S", 3600.0)
    path = tmp_path / "set.npz"
    Snapshot(path, IDENTITY, resume=False).save(sums(), 64)
    assert not path.exists()
    monkeypatch.setattr(snapshot, "SAVE_EVERY_S", 0.0)
    now_and_then = Snapshot(path, IDENTITY, resume=False)
    now_and_then.save(sums(), 64)
    assert Snapshot(path, IDENTITY, resume=True).restore(sums()) == 64
    # Writing took some time, and may not take most of it.
    now_and_then.save(sums(), 65)
    assert Snapshot(path, IDENTITY, resume=True).restore(sums()) == 64
