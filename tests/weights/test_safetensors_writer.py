"""The safetensors library reads what our writer writes."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.files import open_weights
from imagewam_jax.weights.io.safetensors_writer import write_safetensors, write_sharded
from imagewam_jax.weights.io.tensors import ArraySource, TensorSpec, source_bytes


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """Tensors of every dtype and of odd shapes, some of them not contiguous."""
    rng = np.random.default_rng(0)
    return {
        "transposed": rng.normal(size=(5, 7)).astype(np.float32).T,
        "bfloat16": rng.normal(size=(3, 1, 70)).astype(ml_dtypes.bfloat16).swapaxes(0, 2),
        "half": rng.normal(size=9).astype(np.float16),
        "bytes": rng.integers(0, 255, 3).astype(np.uint8),
        "flags": np.array([True, False, True]),
        "scalar": np.array(17, np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "odd": np.array([-0.0, 3e38, 1e-45], np.float32),
        "räumlich/名": rng.normal(size=(2, 2)),
    }


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert found[name].tobytes() == tensor.tobytes(), name


def test_the_library_reads_what_was_written(tensors, tmp_path):
    path, written = tmp_path / "file.safetensors", []
    source = ArraySource(tensors, "memory")
    write_safetensors(path, source, progress=written.append)
    assert_same_bits(load_file(path), tensors)
    with safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    assert len(written) == len(tensors)
    assert sum(written) == source_bytes(source) == sum(t.nbytes for t in tensors.values())


def test_every_tensor_is_aligned(tensors, tmp_path):
    path = tmp_path / "file.safetensors"
    write_safetensors(path, ArraySource(tensors, "memory"))
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert size % 8 == 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] % tensors[name].itemsize == 0, name


def test_no_tensors(tmp_path):
    write_safetensors(tmp_path / "file.safetensors", ArraySource({}, "memory"))
    assert load_file(tmp_path / "file.safetensors") == {}


@pytest.mark.parametrize(("max_bytes", "files"), [(10**6, 1), (200, 3), (0, 9)])
def test_shards(tensors, tmp_path, max_bytes, files):
    """One file if all tensors fit; else an index and files within the limit or of one tensor."""
    source = ArraySource(tensors, "memory")
    write_sharded(tmp_path, "model", source, max_bytes=max_bytes)
    paths = sorted(tmp_path.glob("*.safetensors"))
    if files == 1:
        assert [p.name for p in paths] == ["model.safetensors"]
        assert_same_bits(load_file(paths[0]), tensors)
        return
    assert [p.name for p in paths] == [
        f"model-{i + 1:05d}-of-{files:05d}.safetensors" for i in range(files)
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == source_bytes(source)
    found = {}
    for path in paths:
        part = load_file(path)
        assert len(part) == 1 or sum(t.nbytes for t in part.values()) <= max_bytes
        assert {index["weight_map"][name] for name in part} == {path.name}
        found |= part
    assert_same_bits(found, tensors)
    folder = open_weights(tmp_path)
    assert_same_bits({name: folder.read(name) for name in folder.specs}, tensors)


def test_a_source_that_does_not_give_what_it_said(tmp_path):
    source = ArraySource({"weight": np.zeros((2, 3), np.float32)}, "memory")
    source.specs["weight"] = TensorSpec((3, 2), np.dtype(np.float32), "memory")
    with pytest.raises(ConversionError, match=r"memory: weight is float32 \(2, 3\), .* \(3, 2\)"):
        write_safetensors(tmp_path / "file.safetensors", source)


def test_numbers_that_are_none(tmp_path):
    source = ArraySource({"weight": np.array([0, np.nan, np.inf], np.float32)}, "memory")
    with pytest.raises(ConversionError, match="memory: weight holds 2 numbers that are NaN or inf"):
        write_safetensors(tmp_path / "file.safetensors", source)


def test_a_dtype_that_the_format_lacks(tmp_path):
    source = ArraySource({"weight": np.zeros(3, np.complex128)}, "memory")
    with pytest.raises(ConversionError, match="weight is of complex128, which safetensors files"):
        write_safetensors(tmp_path / "file.safetensors", source)
    assert not list(tmp_path.iterdir())
