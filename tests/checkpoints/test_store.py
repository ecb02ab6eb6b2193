"""Checkpoints: complete or absent, on a full disk too, and found by any of their paths."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagewam_jax.checkpoints import store as checkpoint
from imagewam_jax.checkpoints.checksums import not_finite
from imagewam_jax.checkpoints.steps import is_step
from imagewam_jax.checkpoints.store import Checkpoints, open_checkpoint
from imagewam_jax.errors import CheckpointError, NotFiniteError, Unreadable

TREES = ("params", "ema", "optimizer", "autoencoder")


def trees(size: int) -> dict:
    """Numbers that do not compress."""
    values = np.random.default_rng(0).normal(size=(len(TREES), size)).astype(np.float32)
    return {name: {"w": jnp.asarray(row)} for name, row in zip(TREES, values, strict=True)}


def save(checkpoints: Checkpoints, step: int, size: int) -> None:
    checkpoints.save(step, trees(size), {"config": {}}, {"next_batch": step})


def check_restored(directory, step: int, size: int) -> None:
    checkpoints, found = open_checkpoint(directory)
    abstract = jax.eval_shape(lambda: trees_like(size))
    restored = checkpoints.restore(step, abstract)
    assert found == step
    assert checkpoints.restore_json(step, "data") == {"next_batch": step}
    checkpoints.close()
    for name, tree in trees(size).items():
        np.testing.assert_array_equal(restored[name]["w"], tree["w"])


def trees_like(size: int) -> dict:
    return {name: {"w": jnp.zeros(size)} for name in TREES}


def free(size: int):
    return lambda path: SimpleNamespace(free=size)


def test_a_full_disk_is_noticed_before_writing(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, 100)
    checkpoints.wait()
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", free(10**6))
    with pytest.raises(CheckpointError, match=r"1 checkpoint\(s\) of 2 MB do not fit: 1 MB are"):
        save(checkpoints, 2, 10**5)
    checkpoints.close()
    check_restored(tmp_path, 1, 100)


def test_a_disk_that_fills_up_while_writing(small_disk, monkeypatch):
    """Something else takes the space between the check and the writing."""
    checkpoints = Checkpoints(small_disk / "checkpoints")
    save(checkpoints, 1, 100)
    checkpoints.wait()
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", free(10**12))
    save(checkpoints, 2, 10**6)
    with pytest.raises(
        CheckpointError, match=r"newest complete one is of step 1: .*No space.*; free some"
    ):
        checkpoints.wait()
    checkpoints.close()
    check_restored(small_disk / "checkpoints", 1, 100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with the checkpoints 2 and 3; another one was there and is not kept."""
    folder = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    for step in (1, 2, 3):
        save(checkpoints, step, 10)
    checkpoints.wait()
    checkpoints.close()
    return folder


@pytest.mark.parametrize(
    ("path", "step"), [("", 3), ("checkpoints", 3), ("checkpoints/2", 2), ("checkpoints/3", 3)]
)
def test_paths_that_name_a_checkpoint(run, path, step):
    checkpoints, found = open_checkpoint(run / path)
    assert found == step
    assert checkpoints.restore_json(step, "data") == {"next_batch": step}
    checkpoints.close()


def test_paths_that_do_not(run, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "numbers" / "12").mkdir(parents=True)
    for path, message in (
        (run / "checkpoints/1", r"no checkpoint of step 1; it has \[2, 3\]"),
        (tmp_path / "nothing", "nothing: no such directory, expected a run or a checkpoint"),
        (tmp_path / "notes", r"notes: no checkpoint; it has \[\]"),
        (tmp_path / "numbers", r"numbers: no checkpoint; it has \[\]"),
        (tmp_path / "numbers/12", r"numbers/12: no checkpoint; it has \[\]"),
        (run / "notes", "notes: no such directory, expected a run"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)


def test_a_folder_with_a_number_as_its_name(tmp_path):
    """It is a run, or what was converted into it; a step is a number with a step's items in it."""
    run, converted = tmp_path / "20260601", tmp_path / "2027"
    for folder, step in ((run / "checkpoints", 7), (converted, 0)):
        checkpoints = Checkpoints(folder)
        save(checkpoints, step, 10)
        checkpoints.wait()
        checkpoints.close()
    (converted / "20260601" / "notes").mkdir(parents=True)  # another folder of the user's
    for path, expected in (
        (run, 7),
        (run / "checkpoints", 7),
        (run / "checkpoints" / "7", 7),
        (converted, 0),
        (converted / "0", 0),
    ):
        checkpoints, step = open_checkpoint(path)
        assert step == expected and is_step(checkpoints.directory / str(step))
        checkpoints.close()
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 8; it has \[7\]"):
        open_checkpoint(run / "checkpoints" / "8")
    with pytest.raises(CheckpointError, match=f"{tmp_path}: no checkpoint; it has"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "\x00\x00"])
def test_damaged_metadata(tmp_path, content):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, 10)
    checkpoints.wait()
    checkpoints.close()
    (tmp_path / "1" / "metadata" / "metadata").write_text(content)
    with pytest.raises(CheckpointError, match="1: metadata cannot be read"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(("version", "name"), [(4, "metadata"), (3, "about")])
def test_a_checkpoint_of_another_version(tmp_path, version, name):
    checkpoints = Checkpoints(tmp_path)
    save(checkpoints, 1, 10)
    checkpoints.close()
    metadata = (tmp_path / "1/metadata").rename(tmp_path / "1" / name) / "metadata"
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"format": version}))
    message = f"/1: checkpoint format {version}, this version reads 5; .* `imagewam export"
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_arrays_that_are_not_finite_are_neither_saved_nor_restored(tmp_path, monkeypatch):
    """A version that did not look has saved them."""
    good = trees(10)
    bad = {**good, "ema": {"w": good["ema"]["w"].at[3].set(jnp.nan)}}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, good, {})
    message = r"after step 2, 1 arrays \(ema\.w\) hold NaNs or .* not saved; step 1 is kept"
    with pytest.raises(NotFiniteError, match=message):
        checkpoints.save(2, bad, {})
    assert checkpoints.steps == [1]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "not_finite", lambda tree: [])
        checkpoints.save(2, bad, {})
        checkpoints.wait()
    abstract = jax.eval_shape(lambda: trees_like(10))
    with pytest.raises(Unreadable, match=r"/2: 1 arrays \(ema\.w\) hold NaNs or infinities"):
        checkpoints.restore(2, abstract)
    checkpoints.restore(2, {"params": abstract["params"]})
    checkpoints.close()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_which_arrays_are_not_finite(dtype):
    values = jnp.arange(6).astype(dtype)
    tree = {"b": {"c": values}, "a": values}
    assert not_finite(tree) == []
    if dtype != jnp.int32:
        tree["b"]["c"] = values.at[5].set(jnp.inf)
        assert not_finite(tree | {"d": -tree["b"]["c"], "e": values * jnp.nan}) == ["b.c", "d", "e"]
