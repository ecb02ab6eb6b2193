"""Writes TFRecord shards and hand-made Examples without TFDS, for what TFDS would not write."""

import json
import struct

import numpy as np

from imagewam_jax.config.defaults import defaults
from imagewam_jax.data.index.tfrecord import masked_crc32c


def field(number, payload):
    """A length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def varint(value):
    out = b""
    while value > 127:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def bytes_list(*values):
    return field(1, b"".join(field(1, value) for value in values))


def float_list(*values, packed=True):
    raw = np.array(values, "<f4")
    items = field(1, raw.tobytes()) if packed else b"".join(b"\x0d" + v.tobytes() for v in raw)
    return field(2, items if len(raw) else b"")


def int64_list(*values, packed=True):
    numbers = [varint(value % 2**64) for value in values]
    items = field(1, b"".join(numbers)) if packed else b"".join(b"\x08" + n for n in numbers)
    return field(3, items if numbers else b"")


def example(features):
    """A serialised tf.train.Example of key to what one of the functions above gives."""
    entries = [field(1, field(1, k.encode()) + field(2, v)) for k, v in features.items()]
    return field(1, b"".join(entries))


def write_records(path, payloads):
    with open(path, "wb") as file:
        for payload in payloads:
            length = struct.pack("<Q", len(payload))
            file.write(length + struct.pack("<I", masked_crc32c(length)))
            file.write(payload + struct.pack("<I", masked_crc32c(payload)))


def write_set(folder, step_features, shards, episode_features=None, keep_shards=False):
    """An RLDS folder with the split "train"; `shards` holds a list of episodes for each shard.

    An episode is a dict as `example` takes it; the features are nodes of features.json.
    """
    steps = {"featuresDict": {"features": step_features}}
    name = "tensorflow_datasets.core.features.dataset_feature.Dataset"
    top = {"steps": {"pythonClassName": name, "sequence": {"feature": steps, "length": "-1"}}}
    features = {"featuresDict": {"features": top | (episode_features or {})}}
    (folder / "features.json").write_text(json.dumps(features))
    split = {"name": "train", "shardLengths": [str(len(episodes)) for episodes in shards]}
    info = {"name": "made", "version": "1.0.0", "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    for number, episodes in enumerate(shards):
        path = folder / f"made-train.tfrecord-{number:05d}-of-{len(shards):05d}"
        if not keep_shards:
            write_records(path, [example(episode) for episode in episodes])
    return folder


def made_section(folder, row_cameras, **fields):
    """The `data` section of a config for a set of `write_set` with features "action" of two numbers
    and "state" of one; `row_cameras` are those of its row, `fields` change the section."""
    row = {
        "cameras": row_cameras,
        "action": {"name": "made", "dims": ("x", "y"), "relative": (True, False)},
        "state": {"name": "made", "dims": ("a",)},
        "control_hz": 10.0,
        "action_keys": ("action",),
        "state_keys": ("state",),
        "language": (),
    }
    section = defaults().data.to_dict() | {"directory": str(folder), "dataset": "made"}
    return section | {"rows": {"made": row}} | fields
