"""Tells what a file or folder is that holds no weights in a form that is read, and what to do.

Downloads leave pages and pointers in the place of weights, and other frameworks and trainers have
formats of their own. An error that calls them by their names saves a search for damaged weights.
"""

import re
import zipfile
from pathlib import Path

from imagewam_jax.errors import ConversionError

AGAIN = "download it again"
_EXPORT = "take the weights as .safetensors, or as the .pt file of a state_dict()"
_SUPPORTED = f"is not read; {_EXPORT}"
_TEXT = "a text"
_UNPACK = "unpack it and give what is in it"

# What a file begins with.
_STARTS = (
    (b"GGUF", f"GGUF (quantised weights of llama.cpp), which {_SUPPORTED}"),
    (b"\x89HDF\r\n\x1a\n", f"an HDF5 file (TensorFlow, Keras), which {_SUPPORTED}"),
    (b"\x93NUMPY", f"a NumPy array, which {_SUPPORTED}"),
    (b"\x1f\x8b", f"compressed with gzip: {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"compressed with zstd: {_UNPACK}"),
    (b"\xfd7zXZ\x00", f"compressed with xz: {_UNPACK}"),
    (b"BZh", f"compressed with bzip2: {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7z archive: {_UNPACK}"),
    (b"Rar!", f"a RAR archive: {_UNPACK}"),
)
# What the names of files end with whose beginnings are no sure sign.
_ENDS = {
    ".gguf": "GGUF (quantised weights of llama.cpp)",
    ".ggml": "GGML (quantised weights of llama.cpp)",
    ".onnx": "ONNX",
    ".h5": "an HDF5 file (TensorFlow, Keras)",
    ".keras": "a Keras model",
    ".pb": "a TensorFlow graph",
    ".tflite": "a TensorFlow Lite model",
    ".msgpack": "Flax msgpack",
    ".engine": "a TensorRT engine",
    ".mlmodel": "a Core ML model",
    ".pkl": "a Python pickle (it can run code when it is opened)",
    ".npz": "an archive of NumPy arrays",
    ".npy": "a NumPy array",
    ".distcp": "a shard of PyTorch's distributed checkpoints (FSDP)",
}
_DISTRIBUTED = (
    "a distributed checkpoint of PyTorch (FSDP, DTensor), which is not read: make one file of it "
    "with `python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER model.pt`"
)
_DEEPSPEED = (
    "a checkpoint of DeepSpeed: gather its shards with the zero_to_fp32.py that lies in it or in "
    "the folder above, and give the file that this makes"
)


def refuse_stand_in(path: Path, *, text: bool = True) -> None:
    """ConversionError if a file is a known thing that is found in the place of weights: an empty
    file, a Git-LFS pointer, a web page, a format of another framework.

    text: also if it is any other text, which a config or an index may be.
    """
    if not path.exists() and path.is_symlink():
        raise ConversionError(
            f"{path}: is a link to {path.readlink()}, which is not there: {AGAIN}"
        )
    with path.open("rb") as file:
        start = file.read(512)
        file.seek(257)
        archive = file.read(5) == b"ustar"
    kind = _kind(path, start, archive)
    if kind and (text or not kind.startswith(_TEXT)):
        raise ConversionError(f"{path}: is {kind}")


def _kind(path: Path, start: bytes, archive: bool) -> str | None:
    if not start:
        return f"an empty file: {AGAIN}"
    if archive:
        return f"a tar archive: {_UNPACK}"
    if start.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    for magic, kind in _STARTS:
        if start.startswith(magic):
            return kind
    pickled = start[:1] == b"\x80" and start[2:3] == b"\x95"
    named = _ENDS[".pkl"] if pickled else _format(path)
    if named and start[8:9] != b"{":  # with which the header of safetensors begins
        return f"{named}, which {_SUPPORTED}"
    if not start.strip(b"\0"):
        return f"a file of zeros, as an interrupted download leaves it: {AGAIN}"
    return _text_kind(start)


def _format(path: Path) -> str | None:
    """The foreign format that the name of a file tells, if any."""
    if re.fullmatch(r".+\.(data-\d+-of-\d+|ckpt.*\.(index|meta))", path.name):
        return "a TensorFlow checkpoint"
    return _ENDS.get(path.suffix)


def _zip_kind(path: Path) -> str | None:
    """The kind of a zip archive; None for one of `torch.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return f"cut off: a .pt file (or another zip archive) without its end; {AGAIN}"
    ends = {name.partition("/")[2] for name in names}
    if "constants.pkl" in ends:
        return "a TorchScript program, which is not read: save the state_dict() of its module"
    if "data.pkl" in ends:
        return None
    if all(name.endswith(".npy") for name in names):
        return f"{_ENDS['.npz']}, which {_SUPPORTED}"
    return f"a zip archive of {', '.join(names[:3])}: {_UNPACK}"


def _text_kind(start: bytes) -> str | None:
    """The kind of a text; None if these bytes are no text."""
    try:
        text = start.decode("utf-8").lstrip("\ufeff \t\r\n")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # not merely cut within a character
            return None
        text = start[: error.start].decode("utf-8")
    if any(ord(character) < 32 and not character.isspace() for character in text):
        return None
    lines = text.splitlines() or [""]
    if text.startswith("version https://"):
        size = next((line.split()[1] for line in lines if line.startswith("size ")), "unknown")
        return (
            f"a Git-LFS pointer to a file of {size} bytes, not the file: get it with "
            f"`git lfs pull`, or {AGAIN} with `hf download`"
        )
    if re.match(r"<(!doctype|html|head|body|\?xml)", text, re.IGNORECASE):
        return (
            f"a web page ({lines[0][:60]}), not weights: {AGAIN}; a model with a licence needs "
            "`hf auth login` first"
        )
    return f"{_TEXT} that begins with {lines[0][:60]!r}, not weights: {AGAIN}"


def folder_kind(folder: Path) -> str | None:
    """What a folder is that holds weights in shards which belong to a trainer, or no foreign ones;
    None for any other folder."""
    names = {path.name for path in folder.iterdir()}
    if any(name.endswith(".distcp") for name in names):
        return _DISTRIBUTED
    if any(n.startswith(("zero_pp_rank_", "bf16_zero_pp_rank_", "fp16_zero_pp_")) for n in names):
        return _DEEPSPEED
    if "zero_to_fp32.py" in names and "latest" in names:
        return _DEEPSPEED
    steps = [folder / name for name in names if name.isdigit()]
    steps += (folder / "checkpoints").glob("*")
    if any((step / "_CHECKPOINT_METADATA").is_file() for step in (folder, *steps)):
        return "an Orbax checkpoint of JAX; one of this package needs no conversion"
    return None


def foreign_formats(folder: Path) -> str:
    """Describe the files of a folder that are weights of other formats; empty if there are none."""
    found = [path for path in sorted(folder.iterdir()) if _format(path)]
    found = [path for path in found if not path.name.startswith(("random_states", "rng_state"))]
    if not found:
        return ""
    kinds = ", ".join(f"{path.name} ({_format(path)})" for path in found[:3])
    return f"{kinds}; these formats are not read: {_EXPORT}"
