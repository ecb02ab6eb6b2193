"""The newest checkpoint may be damaged: by a full disk, a lost file, an object store."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from imagewam_jax.checkpoints.store import METRICS_FILE, read_metrics
from imagewam_jax.errors import CheckpointError
from imagewam_jax.training.train import train
from tests.training.tiny import copy_sample, tiny_config

pytestmark = pytest.mark.slow(minutes=1)
STEPS, HALF = 8, 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    config = tiny_config(copy_sample(folder))
    config.train.update(steps=STEPS, checkpoint_every=HALF, keep_checkpoints=5)
    train(config, folder / "run")
    return config, folder / "run"


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def cut(checkpoint):
    file = largest(checkpoint / "optimizer")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def without_a_tree(checkpoint):
    shutil.rmtree(checkpoint / "params")


def without_its_metadata(checkpoint):
    (checkpoint / "ema" / "_METADATA").unlink()


def without_arrays(checkpoint):
    shutil.rmtree(checkpoint / "text" / "d", ignore_errors=True)
    shutil.rmtree(checkpoint / "text" / "ocdbt.process_0", ignore_errors=True)


def half_a_description(checkpoint):
    file = largest(checkpoint / "metadata")
    file.write_text(file.read_text()[:100])


def empty_metadata(checkpoint):
    (checkpoint / "params" / "_METADATA").write_text("")


def a_flipped_bit(checkpoint):
    """In an array that stays readable: it is written again, by what the checkpoint was written by,
    with one bit other than it was."""
    tree, writer = checkpoint / "optimizer", ocp.StandardCheckpointer()
    arrays, treedef = jax.tree.flatten(writer.restore(tree))
    number = max(range(len(arrays)), key=lambda n: arrays[n].size)
    changed = np.array(arrays[number])
    changed.view(np.uint32).reshape(-1)[changed.size // 2] ^= 1
    arrays[number] = jnp.asarray(changed)
    writer.save(tree, jax.tree.unflatten(treedef, arrays), force=True)
    writer.close()


def without_a_position(checkpoint):
    shutil.rmtree(checkpoint / "data")


DAMAGES = [
    a_flipped_bit,
    cut,
    without_a_tree,
    *(
        pytest.param(damage, marks=pytest.mark.slow(minutes=2))
        for damage in (
            without_its_metadata,
            without_arrays,
            half_a_description,
            empty_metadata,
            without_a_position,
        )
    ),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_it_is_named_and_the_one_before_is_taken(finished, tmp_path, capsys, damage):
    config, run = finished
    shutil.copytree(run, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    damage(checkpoints / str(STEPS))
    train(config, tmp_path / "run", resume=True)
    said = capsys.readouterr().out
    assert f"the checkpoint of step {STEPS} is not used and was moved to" in said
    assert {p.name for p in checkpoints.iterdir()} == {"4", "8", "8.unreadable"}
    rows = {
        folder: [
            (row["step"], row["loss"])
            for row in read_metrics(folder / METRICS_FILE)
            if row["kind"] == "train"
        ]
        for folder in (run, tmp_path / "run")
    }
    assert rows[run] == rows[tmp_path / "run"]


def test_none_of_them_can_be_read(finished, tmp_path):
    config, run = finished
    shutil.copytree(run, tmp_path / "run")
    for step in (HALF, STEPS):
        cut(tmp_path / "run" / "checkpoints" / str(step))
    with pytest.raises(CheckpointError, match="none of the checkpoints can be read"):
        train(config, tmp_path / "run", resume=True)
    # Where they were: the next try would begin from nothing otherwise.
    assert {p.name for p in (tmp_path / "run" / "checkpoints").iterdir()} == {"4", "8"}


def test_another_version_is_not_damage(finished, tmp_path):
    """It is left where it is: a program that is too old must not move what it cannot read."""
    config, run = finished
    shutil.copytree(run, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / str(STEPS)
    file = largest(newest / "metadata")
    metadata = json.loads(file.read_text())
    assert np.isfinite(metadata["format"])
    file.write_text(json.dumps({**metadata, "format": 99}))
    with pytest.raises(CheckpointError, match="checkpoint format 99"):
        train(config, tmp_path / "run", resume=True)
    assert newest.is_dir()
