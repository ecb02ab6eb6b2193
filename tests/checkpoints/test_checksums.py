"""Checksums: they change with every flipped bit, and not with the layout of an array."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from imagewam_jax.checkpoints.checksums import array_checksums, differing
from imagewam_jax.checkpoints.layer_reader import SavedTree
from imagewam_jax.checkpoints.store import Checkpoints, open_checkpoint
from imagewam_jax.errors import CheckpointError, Unreadable
from imagewam_jax.weights.checkpoint_writer import Stream, stream_of, write_streams
from imagewam_jax.weights.layouts.mapping import Piece

DTYPES = [np.float32, ml_dtypes.bfloat16, np.int32, np.uint8, np.bool_]


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_it_is_the_sum_of_the_words(dtype):
    values = (np.random.default_rng(0).normal(size=(7, 33)) * 9).astype(dtype)
    words = values.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[values.itemsize])
    expected = int(words.astype(np.uint64).sum() % 2**32)
    assert array_checksums({"a": {"b": values}}) == {"a.b": expected}


def test_every_bit_counts():
    values = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    saved = array_checksums({"w": values})
    assert differing({"w": jnp.asarray(values)}, saved) == []
    for bit in range(0, 8 * values.nbytes, 7):
        changed = values.copy()
        changed.view(np.uint8).reshape(-1)[bit // 8] ^= 1 << bit % 8
        assert differing({"w": jnp.asarray(changed)}, saved) == ["w"]


def test_not_a_number_counts_too():
    values = np.array([np.nan, -0.0, np.inf], np.float32)
    saved = array_checksums({"w": values})
    assert differing({"w": np.array([np.nan, 0.0, np.inf], np.float32)}, saved) == ["w"]


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_flips_on_disk(tmp_path):
    """Whatever bit of a file flips, a checkpoint is what was saved or says that it is not."""
    rng = np.random.default_rng(2)
    tree = {"w": jnp.asarray(rng.normal(size=2000).astype(np.float32)), "n": jnp.arange(500)}
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"params": tree}, {})
    checkpoints.wait()
    files = sorted(p for p in (tmp_path / "1").rglob("*") if p.is_file() and p.stat().st_size)
    abstract = {"params": jax.eval_shape(lambda: tree)}
    noticed = 0
    for number in range(80):
        file = files[number % len(files)]
        content = bytearray(file.read_bytes())
        place = int(rng.integers(8 * len(content)))
        whole = bytes(content)
        content[place // 8] ^= 1 << place % 8
        file.write_bytes(content)
        reader = Checkpoints(tmp_path, read_only=True)
        try:
            restored = reader.restore(1, abstract)["params"]
        except CheckpointError:
            noticed += 1
        else:
            jax.tree.map(np.testing.assert_array_equal, restored, tree)
        reader.close()
        file.write_bytes(whole)
    assert noticed > 20
    assert differing(checkpoints.restore(1, abstract)["params"], array_checksums(tree)) == []
    checkpoints.close()


@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        ("bfloat16", "float32"),  # compared after the bits were widened
        ("float16", "float32"),  # cast after they were compared
        ("float32", "bfloat16"),
    ],
)
def test_an_array_in_another_dtype_is_compared(tmp_path, saved, wanted):
    """Training reads converted weights in float32; -0 and the smallest numbers are among them."""
    values = np.random.default_rng(3).normal(size=50).astype(saved)
    values[:2] = -0.0, np.finfo(np.float16).tiny / 4
    write_streams(tmp_path, 0, {"params": stream_of({"w": values})}, {"config": {}})
    abstract = {"params": {"w": jax.ShapeDtypeStruct((50,), wanted)}}
    checkpoints, step = open_checkpoint(tmp_path)
    restored = checkpoints.restore(step, abstract)["params"]["w"]
    assert restored.dtype == wanted
    np.testing.assert_array_equal(restored, values.astype(wanted))
    flip_a_bit(tmp_path / "0" / "params")
    with pytest.raises(Unreadable, match=r"/0: 1 arrays of params are not .* such as w"):
        checkpoints.restore(step, abstract)
    with pytest.raises(Unreadable, match="/0/params: w is not what was saved"):
        SavedTree(checkpoints, step, "params")("w", None)
    checkpoints.close()


def test_layers_are_compared_when_all_of_them_were_read(tmp_path):
    layers = np.random.default_rng(4).normal(size=(3, 40)).astype(np.float32)
    pieces = [Piece("w", i, layer) for i, layer in enumerate(layers)]
    abstract = {"w": jax.ShapeDtypeStruct(layers.shape, layers.dtype)}
    stream = Stream(abstract, frozenset({"w"}), lambda: pieces)
    write_streams(tmp_path, 0, {"params": stream}, {"config": {}})
    checkpoints, step = open_checkpoint(tmp_path)
    assert checkpoints.checksums(step)["params"] == array_checksums({"w": layers})
    flip_a_bit(tmp_path / "0" / "params")
    saved = SavedTree(checkpoints, step, "params")
    checkpoints.close()
    for layer in (2, 0, 2):
        saved("w", layer)
    with pytest.raises(Unreadable, match="params: w is not what was saved"):
        saved("w", 1)


def flip_a_bit(tree):
    """In a file of an array that a conversion wrote, which holds the numbers as they are."""
    file = max((p for p in tree.rglob("*") if p.name[0].isdigit()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def test_the_array_is_named(tmp_path, monkeypatch):
    from imagewam_jax.checkpoints import store as checkpoint

    tree = {"a": jnp.ones(3), "b": {"c": jnp.zeros(4)}}
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(
            checkpoint, "array_checksums", lambda tree: {**array_checksums(tree), "b.c": 1}
        )
        checkpoints.save(1, {"params": tree}, {})
        checkpoints.wait()
    with pytest.raises(Unreadable, match=r"/1: 1 arrays of params are not .* such as b\.c"):
        checkpoints.restore(1, {"params": jax.eval_shape(lambda: tree)})
    checkpoints.close()
