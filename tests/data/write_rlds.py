"""Writes small RLDS sets with TFDS, and what TFDS itself reads back from them.

Run as its own process: TensorFlow must not enter the process of the tests.

    python write_rlds.py FOLDER

leaves FOLDER/toy_arm/1.0.0 (a set), FOLDER/truth.pickle ({split: [episode]}, each a dict of step
feature to array or list), FOLDER/examples.pickle (a serialised Example and its values), the sets of
rlds_layouts.py, FOLDER/layouts.pickle ({name: {split: [(steps, episode)]}}, steps a dict of key to
the list of its values, episode a dict of key to value; images are their encoded bytes),
FOLDER/cameras.pickle ({name: {split: [[step]]}}, a step a dict of key to decoded value), and
FOLDER/forms.json (by form of features.json, whether TFDS opens it as it opens that of today).
"""

import copy
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from features_forms import FORMS, NOW
from rlds_layouts import LAYOUTS, Cameras, CamerasArray

# One step, fewer than a chunk of 16, exactly one, one more, and longer ones.
EPISODE_STEPS = {"train": (1, 2, 5, 16, 17, 33, 40, 3, 21), "val": (4, 30, 18)}
SHARDS = 3
IMAGE = (32, 48, 3)


class ToyArm(tfds.core.GeneratorBasedBuilder):
    """Two cameras (one of undeclared size), state 5, action 4, two instructions that alternate."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        scalar = tfds.features.Scalar
        jpeg = tfds.features.Image
        observation = tfds.features.FeaturesDict(
            {
                "image": jpeg(shape=IMAGE, encoding_format="jpeg"),
                "wrist_image": jpeg(shape=(None, None, 3), encoding_format="jpeg"),
                "state": tfds.features.Tensor(shape=(5,), dtype=np.float32),
                "clock": tfds.features.Tensor(shape=(2,), dtype=np.int64),
            }
        )
        steps = tfds.features.Dataset(
            {
                "observation": observation,
                "action": tfds.features.Tensor(shape=(4,), dtype=np.float32),
                "language_instruction": tfds.features.Text(),
                "is_first": scalar(np.bool_),
                "is_last": scalar(np.bool_),
                "is_terminal": scalar(np.bool_),
                "reward": scalar(np.float32),
                "discount": scalar(np.float32),
            }
        )
        metadata = tfds.features.FeaturesDict({"seed": scalar(np.int64)})
        features = tfds.features.FeaturesDict({"steps": steps, "episode_metadata": metadata})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in EPISODE_STEPS}

    def _generate_examples(self, split):
        for number, steps in enumerate(EPISODE_STEPS[split]):
            rng = np.random.default_rng([len(split), number])
            yield (
                number,
                {
                    "steps": [self._step(rng, number, t, steps) for t in range(steps)],
                    "episode_metadata": {"seed": number - 4},
                },
            )

    def _step(self, rng, number, t, steps):
        images = rng.integers(0, 256, (2, *IMAGE)).astype(np.uint8)
        return {
            "observation": {
                "image": images[0],
                "wrist_image": images[1],
                "state": rng.normal(size=5).astype(np.float32),
                "clock": np.array([t - 2, 10**12 + t]),
            },
            "action": rng.normal(size=4).astype(np.float32),
            "language_instruction": ("put the cup left", "öffne die Tür")[number % 2],
            "is_first": t == 0,
            "is_last": t == steps - 1,
            "is_terminal": t == steps - 1,
            "reward": float(t),
            "discount": 1.0,
        }


def read_back(builder):
    """Every feature through `as_dataset`, the images also as the bytes that are stored."""
    encoded = tfds.decode.SkipDecoding()
    keep = {"steps": {"observation": {"image": encoded, "wrist_image": encoded}}}
    return {
        split: [
            {**flatten(steps), "encoded": flatten(raw)}
            for steps, raw in zip(
                episodes(builder, split, None), episodes(builder, split, keep), strict=True
            )
        ]
        for split in builder.info.splits
    }


def episodes(builder, split, decoders):
    read_config = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(split=split, decoders=decoders, read_config=read_config)
    for episode in dataset:
        yield list(episode["steps"].as_numpy_iterator())


def flatten(steps):
    """A list of nested steps to a dict of key to stacked values."""
    out = {}
    for key, value in steps[0].items():
        if isinstance(value, dict):
            nested = flatten([step[key] for step in steps])
            out |= {f"{key}/{name}": values for name, values in nested.items()}
        else:
            values = [step[key] for step in steps]
            out[key] = values if isinstance(value, bytes) else np.stack(values)
    return out


def example_messages():
    """Serialised messages with the values that a reader must find."""
    values = {
        "ints": np.array([0, 1, 127, 128, -1, -(2**63), 2**63 - 1, 300]),
        "small": np.arange(100),
        "floats": np.array([0.5, -1.25, 3e38], np.float32),
        "bytes": [b"", b"abc", bytes(200)],
        "ö": np.array([7]),
    }
    features = {
        "ints": tf.train.Feature(int64_list=tf.train.Int64List(value=values["ints"])),
        "small": tf.train.Feature(int64_list=tf.train.Int64List(value=values["small"])),
        "floats": tf.train.Feature(float_list=tf.train.FloatList(value=values["floats"])),
        "bytes": tf.train.Feature(bytes_list=tf.train.BytesList(value=values["bytes"])),
        "ö": tf.train.Feature(int64_list=tf.train.Int64List(value=values["ö"])),
    }
    message = tf.train.Example(features=tf.train.Features(feature=features))
    return {"message": message.SerializeToString(), "values": values}


def read_layout(builder):
    """Every feature of every step and episode, as {split: [(steps, episode)]}."""
    decoders = keep_encoded(builder.info.features)
    read_config = tfds.ReadConfig(interleave_cycle_length=1)
    out = {}
    for split in builder.info.splits:
        dataset = builder.as_dataset(split=split, decoders=decoders, read_config=read_config)
        out[split] = []
        for episode in dataset:
            steps = [flatten_step(step) for step in episode.pop("steps")]
            columns = {key: [step[key] for step in steps] for key in steps[0]}
            out[split].append((columns, flatten_step(episode)))
    return out


def keep_encoded(features):
    """Decoders that leave every image, however deep, as its bytes."""
    if isinstance(features, tfds.features.Image):
        return tfds.decode.SkipDecoding()
    if isinstance(features, tfds.features.FeaturesDict):
        inner = {key: keep_encoded(feature) for key, feature in features.items()}
        return {key: value for key, value in inner.items() if value} or None
    if isinstance(features, tfds.features.Dataset):
        return keep_encoded(features.feature)
    return None


def flatten_step(node, prefix=""):
    out = {}
    for key, value in node.items():
        if isinstance(value, dict):
            out |= flatten_step(value, f"{prefix}{key}/")
        elif isinstance(value, tf.data.Dataset):
            out[prefix + key] = None
        else:
            out[prefix + key] = value.numpy()
    return out


def write_layouts(folder):
    truth = {}
    for name, layout in LAYOUTS.items():
        builder = layout(data_dir=folder)
        config = tfds.download.DownloadConfig(num_shards=2 if name != "bridge" else 1)
        builder.download_and_prepare(download_config=config)
        truth[name] = read_layout(builder)
    (folder / "layouts.pickle").write_bytes(pickle.dumps(truth))


def write_cameras(folder):
    truth = {}
    for layout, file_format in ((Cameras, "tfrecord"), (CamerasArray, "array_record")):
        builder = layout(data_dir=folder, file_format=file_format)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=2))
        truth[builder.name] = {split: read_decoded(builder, split) for split in builder.info.splits}
    (folder / "cameras.pickle").write_bytes(pickle.dumps(truth))


def read_decoded(builder, split):
    if builder.info.file_format.value == "array_record":
        # `as_data_source` cannot decode sequences of images, `as_dataset` reads no ArrayRecord.
        paths = [str(path) for path in builder.info.splits[split].filepaths]
        records = ArrayRecordDataSource(paths)
        decode = builder.info.features.deserialize_example
        dataset = tfds.as_numpy([decode(records[i]) for i in range(len(records))])
    else:
        read_config = tfds.ReadConfig(interleave_cycle_length=1)
        dataset = tfds.as_numpy(builder.as_dataset(split=split, read_config=read_config))
    return [[flatten_values(step) for step in episode["steps"]] for episode in dataset]


def flatten_values(node, prefix=""):
    out = {}
    for key, value in node.items():
        if isinstance(value, dict):
            out |= flatten_values(value, f"{prefix}{key}/")
        else:
            out[prefix + key] = np.asarray(value)
    return out


def write_forms(folder):
    """Whether TFDS opens each form of features.json as the same features."""
    tree = copy.deepcopy(NOW)
    steps = tree["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]
    # TFDS would import the module of a class that is not its own.
    del steps["features"]["own"]
    read = tfds.features.FeatureConnector.from_json
    expected = repr(read(tree))
    same = {name: repr(read(form(tree))) == expected for name, form in FORMS.items()}
    (folder / "forms.json").write_text(json.dumps(same))


def main(folder):
    config = tfds.download.DownloadConfig(num_shards=SHARDS)
    builder = ToyArm(data_dir=folder)
    builder.download_and_prepare(download_config=config)
    (folder / "truth.pickle").write_bytes(pickle.dumps(read_back(builder)))
    (folder / "examples.pickle").write_bytes(pickle.dumps(example_messages()))
    write_layouts(folder)
    write_cameras(folder)
    write_forms(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
