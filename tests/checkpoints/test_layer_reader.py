"""Reading a tree layer by layer, whatever its chunks on disk are."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import ml_dtypes
import numpy as np
import pytest

from imagewam_jax.checkpoints import layer_reader
from imagewam_jax.checkpoints.layer_reader import SavedTree
from imagewam_jax.checkpoints.store import Checkpoints, open_checkpoint
from imagewam_jax.errors import CheckpointError
from imagewam_jax.models.parameters import flatten
from imagewam_jax.weights.checkpoint_writer import Stream, write_streams
from imagewam_jax.weights.layouts.mapping import Piece

LAYERS = 7


@pytest.fixture(scope="module")
def tree():
    rng = np.random.default_rng(0)
    return {
        "layers": {
            "kernel": rng.normal(size=(LAYERS, 4, 6)).astype(np.float32),
            "scale": rng.normal(size=(LAYERS, 5)).astype(ml_dtypes.bfloat16),
            "zero": np.zeros((LAYERS, 3), np.float16),
        },
        "bias": rng.normal(size=9).astype(np.float32),
    }


def write_run(folder, tree):
    """Write as a training run does: each array is one chunk."""
    checkpoints = Checkpoints(folder)
    checkpoints.save(3, {"params": jax.tree.map(jax.numpy.asarray, tree)}, {"config": {}})
    checkpoints.close()


def write_stream(folder, tree):
    """Write as a conversion does: each layer is one chunk."""
    flat = flatten(tree)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
    stacked = frozenset(path for path in flat if path.startswith("layers."))

    def pieces():
        for path, array in flat.items():
            if path in stacked:
                yield from (Piece(path, i, layer) for i, layer in enumerate(array))
            else:
                yield Piece(path, None, array)

    write_streams(folder, 3, {"params": Stream(abstract, stacked, pieces)}, {"config": {}})


def saved_tree(folder, name="params"):
    checkpoints, step = open_checkpoint(folder)
    saved = SavedTree(checkpoints, step, name)
    checkpoints.close()
    return saved


@pytest.mark.parametrize("block_bytes", [1, 200, 10**9])
@pytest.mark.parametrize("write", [write_run, write_stream])
def test_every_layer_in_any_order(write, block_bytes, tree, tmp_path, monkeypatch):
    """This holds also if blocks of two layers are kept, and only those of one array."""
    monkeypatch.setattr(layer_reader, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(layer_reader, "KEPT_BYTES", block_bytes)
    write(tmp_path, tree)
    saved = saved_tree(tmp_path)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), saved.abstract) == jax.tree.map(
        lambda x: (x.shape, x.dtype), tree
    )
    for path, array in flatten(tree).items():
        found = saved(path, None)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    for layer in [*range(LAYERS), 4, 0, 6]:
        for path, array in flatten(tree["layers"]).items():
            np.testing.assert_array_equal(saved(f"layers.{path}", layer), array[layer])


@pytest.mark.parametrize(("write", "kept"), [(write_run, True), (write_stream, False)])
def test_several_threads_at_a_time(write, kept, tree, tmp_path, monkeypatch):
    """An array is opened once, and its kept blocks are changed by one thread at a time."""
    monkeypatch.setattr(layer_reader, "BLOCK_BYTES", 200)
    monkeypatch.setattr(layer_reader, "KEPT_BYTES", 200)
    write(tmp_path, tree)
    saved, flat = saved_tree(tmp_path), flatten(tree["layers"])
    inside, most = [], []

    def alone(method):
        def slow(*args):
            inside.append(method)
            most.append(len(inside))
            time.sleep(0.001)
            try:
                return method(*args)
            finally:
                inside.remove(method)

        return slow

    monkeypatch.setattr(saved, "_open", alone(saved._open))
    monkeypatch.setattr(saved, "_layer", alone(saved._layer))
    start = threading.Barrier(6)

    def read(seed):
        wanted = [(path, layer) for path in flat for layer in range(LAYERS)]
        start.wait()
        for i in np.random.default_rng(seed).permutation(len(wanted)):
            path, layer = wanted[i]
            np.testing.assert_array_equal(saved(f"layers.{path}", layer), flat[path][layer])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, range(6)))
    assert max(most) == 1
    assert len(most) == len(flat) + (6 * LAYERS * len(flat) if kept else 0)


def test_no_more_is_kept_than_is_allowed(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(layer_reader, "BLOCK_BYTES", 200)
    monkeypatch.setattr(layer_reader, "KEPT_BYTES", 200)
    write_run(tmp_path / "run", tree)
    write_stream(tmp_path / "stream", tree)
    for folder, kept in (("run", 192), ("stream", 0)):
        saved = saved_tree(tmp_path / folder)
        for layer in range(LAYERS):
            saved("layers.scale", layer)
            saved("layers.kernel", layer)
            assert sum(block.nbytes for _, block in saved._blocks.values()) <= kept


def test_the_arrays_are_compared_with_those_of_a_model(tree, tmp_path):
    write_run(tmp_path, tree)
    saved = saved_tree(tmp_path)
    saved.check(tree)
    saved.check(tree["layers"], "layers")
    with pytest.raises(CheckpointError, match=r"1 arrays .* of: layers.zero is \(7, 3\), not None"):
        saved.check(
            {"kernel": tree["layers"]["kernel"], "scale": tree["layers"]["scale"]}, "layers"
        )
    with pytest.raises(CheckpointError, match=r"bias is \(9,\), not \(8,\)"):
        saved.check({**tree, "bias": np.zeros(8)})


def test_a_tree_that_is_not_there(tree, tmp_path):
    write_run(tmp_path, tree)
    with pytest.raises(CheckpointError, match=r"no 'ema' in it; it has \['params'\]"):
        saved_tree(tmp_path, "ema")


def test_a_file_that_is_gone(tree, tmp_path):
    write_stream(tmp_path, tree)
    saved = saved_tree(tmp_path)
    (tmp_path / "3" / "params" / "layers.kernel" / "1.0.0").unlink()
    with pytest.raises(CheckpointError, match=r"params: layers.kernel cannot be read"):
        saved("layers.kernel", 1)
