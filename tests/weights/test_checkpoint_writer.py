"""Checkpoints written piece by piece: the usual files, little memory, and no half-written step."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from imagewam_jax.checkpoints import store as checkpoint
from imagewam_jax.checkpoints.store import Checkpoints, open_checkpoint
from imagewam_jax.errors import CheckpointError, ConversionError
from imagewam_jax.weights.checkpoint_writer import Stream, stream_of, write_streams
from imagewam_jax.weights.layouts.mapping import Piece
from tests.checkpoints.test_store import free

ROOT = Path(__file__).resolve().parents[2]
LAYERS = 3


def tree() -> dict:
    rng = np.random.default_rng(0)
    return {
        "stack": {
            "w": rng.normal(size=(LAYERS, 40, 24)).astype(ml_dtypes.bfloat16),
            "b": rng.normal(size=(LAYERS, 7)).astype(np.float32),
        },
        "head": rng.normal(size=(5,)).astype(np.float16),
    }


def stream(pieces=None) -> Stream:
    """A stream of the tree's pieces in random order."""
    t = tree()
    parts = [Piece("head", None, t["head"])]
    parts += [Piece(f"stack.{k}", i, t["stack"][k][i]) for k in "wb" for i in range(LAYERS)]
    order = np.random.default_rng(1).permutation(len(parts))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), t)
    stacked = frozenset({"stack.w", "stack.b"})
    return Stream(abstract, stacked, pieces or (lambda: [parts[i] for i in order]))


def assert_is_tree(restored: dict) -> None:
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(tree()), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_stream_is_restored_as_if_it_had_been_in_memory(tmp_path):
    write_streams(
        tmp_path / "stream", 3, {"params": stream()}, {"config": {}}, tokenizer={"a": "b"}
    )
    whole = Checkpoints(tmp_path / "whole")
    whole.save(3, {"params": jax.tree.map(jnp.asarray, tree())}, {"config": {}})
    whole.wait()
    whole.close()
    for folder in ("stream", "whole"):
        checkpoints, step = open_checkpoint(tmp_path / folder)
        assert step == 3 and checkpoints.trees(step) == {"params"}
        abstract = checkpoints.abstract(step, "params")
        assert_is_tree(checkpoints.restore(step, {"params": abstract})["params"])
        # It is restored in another dtype: training keeps float32, whatever was converted.
        wider = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, np.float32), abstract)
        restored = checkpoints.restore(step, {"params": wider})["params"]
        np.testing.assert_array_equal(restored["head"], tree()["head"].astype(np.float32))
        checkpoints.close()
    checkpoints, step = open_checkpoint(tmp_path / "stream")
    assert checkpoints.restore_json(step, "tokenizer") == {"a": "b"}
    checkpoints.close()


def test_a_small_tree_beside_it(tmp_path):
    small = {"mean": np.arange(3.0), "more": {"x": np.ones((2, 2), np.float32)}}
    write_streams(tmp_path, 0, {"params": stream(), "normalizers": stream_of(small)}, {})
    checkpoints, step = open_checkpoint(tmp_path)
    assert checkpoints.trees(step) == {"params", "normalizers"}
    found = checkpoints.restore(step, {"normalizers": checkpoints.abstract(step, "normalizers")})
    np.testing.assert_array_equal(found["normalizers"]["more"]["x"], small["more"]["x"])
    checkpoints.close()


def test_arrays_that_the_model_does_not_have(tmp_path):
    write_streams(tmp_path, 0, {"params": stream()}, {})
    checkpoints, step = open_checkpoint(tmp_path)
    abstract = checkpoints.abstract(step, "params")
    abstract["head"] = jax.ShapeDtypeStruct((6,), np.float16)
    abstract["tail"] = abstract["head"]
    message = r"params: 2 arrays .* head is \(5,\), not \(6,\); tail is None, not \(6,\)"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.restore(step, {"params": abstract})
    with pytest.raises(CheckpointError, match=r"no 'ema' in it; it has \['params'\]"):
        checkpoints.abstract(step, "ema")
    checkpoints.close()


def test_a_chunk_that_is_gone(tmp_path):
    """It is an error, and not read as zeros."""
    write_streams(tmp_path, 0, {"params": stream()}, {})
    (tmp_path / "0" / "params" / "stack.w" / "1.0.0").unlink()
    checkpoints, step = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"0/params cannot be read: (.|\n)*stack.w"):
        checkpoints.restore(step, {"params": checkpoints.abstract(step, "params")})
    checkpoints.close()


def test_an_error_between_pieces_leaves_nothing(tmp_path):
    def broken():
        yield Piece("head", None, tree()["head"])
        raise ConversionError("file: a tensor holds NaNs")

    with pytest.raises(ConversionError, match="file: a tensor holds NaNs"):
        write_streams(tmp_path, 0, {"params": stream(broken)}, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_checkpoint(tmp_path)
    write_streams(tmp_path, 0, {"params": stream()}, {})  # and does not stand in the way
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0"]


def test_pieces_that_are_not_those_of_the_tree(tmp_path):
    """If a piece is missing, comes twice, or has another layer or shape, nothing is written."""
    whole = list(stream().pieces())
    head = next(piece for piece in whole if piece.path == "head")
    wrong = {
        "1 pieces did not come": whole[:-1],
        "unexpected head, layer None": [*whole, head],
        "unexpected head, layer 0": [*whole, head._replace(layer=0)],
        "unexpected head": [head._replace(array=head.array[:1])],
    }
    for message, given in wrong.items():
        with pytest.raises(CheckpointError, match=message):
            write_streams(tmp_path / "out", 0, {"params": stream(lambda given=given: given)}, {})
        assert list((tmp_path / "out").iterdir()) == [], message
    with pytest.raises(CheckpointError, match="-1 is no step"):
        write_streams(tmp_path / "out", -1, {"params": stream()}, {})


def test_too_little_space_is_noticed_before(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", free(1000))
    with pytest.raises(CheckpointError, match="do not fit"):
        write_streams(tmp_path / "out", 0, {"params": stream()}, {})
    assert not (tmp_path / "out").exists()


SLOW = """
import sys, time
from tests.weights.test_checkpoint_writer import stream
from imagewam_jax.weights.checkpoint_writer import write_streams
parts = stream().pieces()
def slow():
    for i, piece in enumerate(parts):
        yield piece
        if i == 4:
            print("half", flush=True)
            time.sleep(60)
write_streams(sys.argv[1], 0, {"params": stream(slow)}, {})
"""


def test_a_killed_writer_leaves_nothing_readable_and_can_start_again(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    assert process.stdout.readline() == "half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(tmp_path.iterdir())  # there is something of it
    with pytest.raises(CheckpointError, match="no checkpoint"):
        open_checkpoint(tmp_path)
    write_streams(tmp_path, 0, {"params": stream()}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0"]
    checkpoints, step = open_checkpoint(tmp_path)
    abstract = checkpoints.abstract(step, "params")
    assert_is_tree(checkpoints.restore(step, {"params": abstract})["params"])
    checkpoints.close()


MANY_DEVICES = """
import sys, jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from imagewam_jax.checkpoints.store import open_checkpoint
from tests.weights.test_checkpoint_writer import assert_is_tree
mesh = jax.make_mesh((4,), ("fsdp",))
checkpoints, step = open_checkpoint(sys.argv[1])
abstract = checkpoints.abstract(step, "params")
specs = {"stack": {"w": P(None, "fsdp"), "b": P()}, "head": P()}
abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, s)),
    abstract, specs)
restored = checkpoints.restore(step, {"params": abstract})["params"]
w = restored["stack"]["w"]
assert {s.data.shape for s in w.addressable_shards} == {(3, 10, 24)}, w.sharding
assert len({s.device for s in w.addressable_shards}) == 4
assert_is_tree(restored)
"""


def test_each_device_gets_its_own_part(tmp_path):
    write_streams(tmp_path, 0, {"params": stream()}, {})
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", MANY_DEVICES, str(tmp_path)],
        env=os.environ | {"XLA_FLAGS": flags},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


MEMORY = """
import resource, sys
import jax, numpy as np
from imagewam_jax.weights.layouts.mapping import Piece
from imagewam_jax.weights.checkpoint_writer import Stream, write_streams
import imagewam_jax.weights.checkpoint_writer as streaming
streaming.PENDING_BYTES = 32 * 2**20
layer = np.random.default_rng(0).integers(0, 2**14, 2**22).astype(np.uint16)  # 8 MB
layers = int(sys.argv[2])
def pieces():
    for i in range(layers):
        yield Piece("w", i, (layer + np.uint16(i)).view(np.float16))
abstract = {"w": jax.ShapeDtypeStruct((layers, 2**22), np.float16)}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_streams(sys.argv[1], 0, {"params": Stream(abstract, frozenset({"w"}), pieces)}, {})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """400 MB are written with less than half as much memory."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), "50"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout) < 200


def test_an_interrupt_ends_it_and_leaves_nothing(tmp_path):
    """The threads that write end first, so that nothing appears behind what is removed."""
    parts = stream().pieces()

    def pieces():
        yield parts[0]
        os.kill(os.getpid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            time.sleep(0.001)  # until the main thread has heard it
        yield from parts[1:]

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            write_streams(tmp_path, 0, {"params": stream(pieces)}, {})
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_has_other_checkpoints(tmp_path):
    """They would be found in place of this one, or this one in place of them."""
    write_streams(tmp_path / "weights", 500, {"params": stream()}, {"config": {}})
    with pytest.raises(CheckpointError, match=r"weights has other checkpoints \(500\)"):
        write_streams(tmp_path / "weights", 7, {"params": stream()}, {"config": {}})
    assert [p.name for p in (tmp_path / "weights").iterdir()] == ["500"]
    with pytest.raises(CheckpointError, match=r"500 has other .* \(the items of a step\)"):
        write_streams(tmp_path / "weights" / "500", 7, {"params": stream()}, {"config": {}})
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"run has other checkpoints \(a run\)"):
        write_streams(tmp_path / "run", 7, {"params": stream()}, {"config": {}})
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="file is a file, expected a folder"):
        write_streams(tmp_path / "file", 7, {"params": stream()}, {"config": {}})
    with pytest.raises(CheckpointError, match="below: the checkpoint could not"):
        write_streams(tmp_path / "file" / "below", 7, {"params": stream()}, {"config": {}})
    assert (tmp_path / "file").read_text() == "x"
