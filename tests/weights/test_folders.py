"""Which files of a folder are read, and what is said of files that hold no weights."""

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from imagewam_jax.errors import ConversionError
from imagewam_jax.weights.io.files import file_checksums, open_weights

TENSORS = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float32)}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 7751105712\n"


def save(path: Path, tensors=TENSORS) -> Path:
    """Write a file of safetensors or, by its name, of PyTorch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch = pytest.importorskip("torch")
        torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, path)
    return path


def shards(folder: Path, stem: str, end: str, index: str | None) -> None:
    """Write each tensor as a shard of its own, and an index of this name."""
    files = {name: f"{stem}-0000{i + 1}-of-00002{end}" for i, name in enumerate(TENSORS)}
    for name, file in files.items():
        save(folder / file, {name: TENSORS[name]})
    if index:
        (folder / index).write_text(json.dumps({"weight_map": files}))


def assert_read(path: Path, *notes: str) -> None:
    """Assert that all tensors are there with their numbers, and what is said besides."""
    opened = open_weights(path)
    assert opened.specs.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(opened.read(name), tensor)
    assert opened.notes == notes


def refused(path: Path) -> str:
    with pytest.raises(ConversionError) as error:
        open_weights(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("stem", "end", "index"),
    [
        ("model", ".safetensors", "model.safetensors.index.json"),
        ("x.fp16", ".safetensors", "x.safetensors.index.fp16.json"),
        ("pytorch_model", ".bin", "pytorch_model.bin.index.json"),
        ("model", ".safetensors", None),
    ],
)
def test_shards(tmp_path, stem, end, index):
    shards(tmp_path, stem, end, index)
    first = f"{stem}-00001-of-00002{end}"
    assert_read(tmp_path, f"read: {first} and 1 more shards")
    assert next(file["file"] for file in file_checksums(tmp_path)) == first
    assert f"{first}: is one of 2 shards: give their index, or their fo" in refused(
        tmp_path / first
    )
    if index:
        assert_read(tmp_path / index)
    (tmp_path / first).unlink()
    missing = f"{tmp_path / first}: missing, but {index} names it" if index else "1 of the 2 shards"
    assert missing in refused(tmp_path)
    (tmp_path / first).symlink_to("gone")
    assert f"{tmp_path / first}: is a link to gone, which is not there" in refused(tmp_path)


@pytest.mark.parametrize("name", ["model.pt", "last.ckpt", "pytorch_model.bin", "w.safetensors"])
def test_the_one_file_of_a_folder(tmp_path, name):
    """As in a release, or in what a trainer saves, with other files beside it."""
    save(tmp_path / name)
    for other in ("optimizer.pt", "training_args.bin", "scheduler.pt", "rng_state_0.pth"):
        save(tmp_path / other, {"x": np.zeros(2)}) if name != "w.safetensors" else None
    (tmp_path / "train_config.yaml").write_text("a: 1")
    assert_read(tmp_path, f"read: {name}")


def test_both_formats(tmp_path):
    """safetensors are preferred to .bin, as transformers does, and that is said."""
    save(tmp_path / "model.safetensors")
    save(tmp_path / "pytorch_model.bin", {"a": np.zeros(3)})
    said = "not read: pytorch_model.bin, since model.safetensors is there"
    assert_read(tmp_path, "read: model.safetensors", said)
    save(tmp_path / "model.pt")
    assert "holds 2 sets of weights (model.safetensors; model.pt): give the file" in refused(
        tmp_path
    )


def test_an_index_whose_shards_are_gone(tmp_path):
    """It is passed over beside a whole file, and an error where there is nothing else; beside a
    whole file and whole shards, either could be meant."""
    shards(tmp_path, "model", ".safetensors", "model.safetensors.index.json")
    save(tmp_path / "model.safetensors")
    message = "holds 2 sets of weights (model-00001-of-00002.safetensors and 1 more shards; model."
    assert message in refused(tmp_path)
    for shard in tmp_path.glob("*-of-*"):
        shard.unlink()
    said = "model.safetensors.index.json, whose shards are not there, since model.safetensors is"
    assert_read(tmp_path, "read: model.safetensors", f"not read: {said}")
    (tmp_path / "model.safetensors").unlink()
    assert "model-00001-of-00002.safetensors: missing, but model.saf" in refused(tmp_path)
    save(tmp_path / "pytorch_model.bin")
    said = said.replace("model.safetensors is", "pytorch_model.bin is")
    assert_read(tmp_path, "read: pytorch_model.bin", f"not read: {said}")


def test_the_index_of_another_format(tmp_path):
    """A download of the safetensors files alone often has the index of the others too."""
    shards(tmp_path, "model", ".safetensors", "model.safetensors.index.json")
    index = {"weight_map": {"a": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    read = "model-00001-of-00002.safetensors and 1 more shards"
    said = f"not read: pytorch_model.bin.index.json, whose shards are not there, since {read} is"
    assert_read(tmp_path, f"read: {read}", said)


def test_variants(tmp_path):
    save(tmp_path / "x.safetensors")
    save(tmp_path / "x.fp16.safetensors")
    message = refused(tmp_path)
    assert "a is in both" in message and "give the one file to take, not the folder" in message


def test_folders_of_a_download(tmp_path):
    """The error names the folders that have weights; beside weights, they are mentioned."""
    save(tmp_path / "transformer" / "x.safetensors")
    save(tmp_path / "vae" / "x.safetensors")
    below = f"{tmp_path}/transformer, {tmp_path}/vae"
    assert f"{tmp_path}: holds no weights itself; give what you need of {below}" in refused(
        tmp_path
    )
    save(tmp_path / "flux.safetensors")
    said = f"not read: the weights in {below}; each is a SOURCE of its own"
    assert_read(tmp_path, "read: flux.safetensors", said)
    cache = tmp_path / "models--a--b"
    save(cache / "snapshots" / "abc" / "x.safetensors")
    assert f"give what you need of {cache}/snapshots/abc" in refused(cache)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("__0_0.distcp", "is a distributed checkpoint of PyTorch .* dcp_to_torch"),
        (
            "zero_pp_rank_0_mp_rank_00_model_states.pt",
            "checkpoint of DeepSpeed: .* zero_to_fp32.py",
        ),
        ("0/_CHECKPOINT_METADATA", "one of this package needs no conversion"),
        ("checkpoints/7/_CHECKPOINT_METADATA", "one of this package needs no conversion"),
        ("m.ckpt.data-00000-of-00001", "a TensorFlow checkpoint.; these formats are not read"),
        ("model.gguf", r"holds model.gguf \(GGUF .*\); these formats are not read"),
        ("flax_model.msgpack", "Flax msgpack.*; these formats are not read"),
        (".cache/x/abc.incomplete", r"a download that did not finish \(abc.incomplete\)"),
        (
            "config.json",
            r"no safetensors or PyTorch file of weights in it; found \['config.json'\]",
        ),
    ],
)
def test_folders_without_weights(tmp_path, file, message):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_bytes(b"\x81")
    with pytest.raises(ConversionError, match=f"{tmp_path}: .*{message}"):
        open_weights(tmp_path)
    if file.endswith(".distcp"):
        (tmp_path / "step_7").mkdir()
        (tmp_path / file).rename(tmp_path / "step_7" / file)
        message = f"holds no weights itself; step_7 in it {message}"
        with pytest.raises(ConversionError, match=message):
            open_weights(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model-1-of-2.safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git-LFS pointer to a file of 7751105712 bytes, not the file: .*lfs pull"),
        ("\n<!DOCTYPE html><html>", r"is a web page \(<!DOCTYPE html><html>\), not weights"),
        ("<?xml version='1.0'?><Error>", "is a web page"),
        ("Entry not found", "is a text that begins with 'Entry not found', not weights"),
        ("", "is an empty file: download it again"),
        (bytes(4096), "is a file of zeros, as an interrupted download leaves it"),
        (b"GGUF\3\0\0\0", "is GGUF"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
        (b"\x1f\x8b\x08", "is compressed with gzip: unpack it"),
        (b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c", "is a Python pickle .* not read"),
        (b"PK\x03\x04" + bytes(100), "is cut off: a .pt file"),
    ],
)
def test_what_lies_in_the_place_of_weights(tmp_path, name, content, message):
    content = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(content)
    alone = tmp_path / name.replace("-1-of-2", "")
    shutil.copyfile(tmp_path / name, alone) if alone.name != name else None
    with pytest.raises(ConversionError, match=f"{alone}: {message}"):
        open_weights(alone)


@pytest.mark.parametrize("name", ["m.onnx", "m.h5", "m.pb", "m.tflite", "m.msgpack", "m.engine"])
def test_formats_that_their_names_tell(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x08\x07\x12")
    assert "which is not read; take the weights as .safetensors" in refused(tmp_path / name)


def test_archives(tmp_path):
    (tmp_path / "note").write_text("x")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "note", "model/w.safetensors")
    assert "x.zip: is a zip archive of model/w.safetensors: unpack it" in refused(
        tmp_path / "x.zip"
    )
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(tmp_path / "note")
    assert "x.tar: is a tar archive: unpack it" in refused(tmp_path / "x.tar")
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    assert "x.npz: is an archive of NumPy arrays, which is not read" in refused(tmp_path / "x.npz")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program(tmp_path):
    torch = pytest.importorskip("torch")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "model.pt")
    assert "is a TorchScript program, which is not read: save the state_dict()" in refused(
        tmp_path / "model.pt"
    )


def test_paths_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.safetensors").symlink_to("gone")
    assert refused(tmp_path / "x.safetensors").endswith(
        "is a link to gone, which is not there: download it again"
    )
    assert refused(tmp_path / "y.safetensors").endswith("no such file or folder")
    hint = "hf download black-forest-labs/FLUX.2-klein-base-4B --local-dir"
    assert hint in refused(Path("black-forest-labs/FLUX.2-klein-base-4B"))
    assert "download them first" in refused(Path("https://huggingface.co/Qwen/Qwen3-4B"))


def test_bytes_after_the_end(tmp_path):
    path = save(tmp_path / "x.safetensors")
    with path.open("ab") as file:
        file.write(os.urandom(64))
    assert f"{path}: not a whole safetensors file: 64 bytes follow its end" in refused(path)


def test_quantised_files(tmp_path):
    path = tmp_path / "x.safetensors"
    entry = {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}
    header = json.dumps({"a": entry}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "these weights are quantised, and are not read" in refused(path)
