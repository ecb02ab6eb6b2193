"""A tf.data reader of RLDS as its users write it, and the synthetic dataset for measurements.

TensorFlow is imported here and nowhere else among the benchmarks of the input pipeline.
"""

import io
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

CAMERAS = ("image", "wrist_image")
SIDE, STATE, ACTION, HORIZON = 256, 8, 7, 16
PICTURES = 400  # distinct ones, which episodes take in a cycle


class Synthetic(tfds.core.GeneratorBasedBuilder):
    """Two JPEG cameras of 256 x 256, some 22 KB a picture, in the layout of RLDS."""

    VERSION = tfds.core.Version("1.0.0")
    episodes, steps, shards = 72, 118, 8

    def _info(self):
        features = tfds.features
        observation: dict[str, Any] = {
            name: features.Image(shape=(SIDE, SIDE, 3), encoding_format="jpeg") for name in CAMERAS
        }
        observation["state"] = features.Tensor(shape=(STATE,), dtype=np.float32)
        steps = {
            "observation": observation,
            "action": features.Tensor(shape=(ACTION,), dtype=np.float32),
            "language_instruction": features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=features.FeaturesDict({"steps": features.Dataset(steps)})
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        pictures, rng = [_picture(n) for n in range(PICTURES)], np.random.default_rng(0)
        for episode in range(self.episodes):
            length = int(rng.integers(self.steps // 2, self.steps * 3 // 2))
            steps = [
                {
                    "observation": {
                        name: io.BytesIO(pictures[(episode * 37 + t + 200 * k) % PICTURES])
                        for k, name in enumerate(CAMERAS)
                    }
                    | {"state": rng.normal(size=STATE).astype(np.float32)},
                    "action": rng.normal(size=ACTION).astype(np.float32),
                    "language_instruction": f"put block {episode % 9} away",
                }
                for t in range(length)
            ]
            yield episode, {"steps": steps}


def _picture(number: int) -> bytes:
    """Smooth shades with a little grain."""
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (12, 12, 3)).astype(np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    grain = rng.normal(0, 6, (SIDE, SIDE, 1))
    out = io.BytesIO()
    picture = np.clip(smooth + grain, 0, 255).astype(np.uint8)
    Image.fromarray(picture).save(out, format="JPEG", quality=88)
    return out.getvalue()


def write(folder: Path, episodes: int, steps: int) -> Path:
    """Write the dataset; returns its version folder."""
    Synthetic.episodes, Synthetic.steps = episodes, steps
    builder = Synthetic(data_dir=folder)
    options = tfds.download.DownloadConfig(num_shards=Synthetic.shards)
    builder.download_and_prepare(download_config=options)
    return Path(builder.data_dir)


def reader(
    folder: Path,
    batch_size: int,
    shuffle: int,
    resize: str | None,
    *,
    exact: bool = False,
    endless: bool = True,
) -> tf.data.Dataset:
    """Read batches of chunks of 16 actions with both cameras, now and 16 steps later.

    Encoded images go through the shuffle buffer and are decoded behind it. `resize` is a method
    of tf.image.resize, antialiased, to 224 x 224. `exact` decodes with the exact DCT instead of
    TensorFlow's default. The batches are endless or those of one epoch.
    """
    shards = sorted(str(path) for path in folder.glob("*.tfrecord*"))
    keys = {f"steps/observation/{name}": tf.string for name in CAMERAS}
    described = {key: tf.io.RaggedFeature(dtype) for key, dtype in keys.items()}
    for key in ("steps/observation/state", "steps/action"):
        described[key] = tf.io.RaggedFeature(tf.float32)
    described["steps/language_instruction"] = tf.io.RaggedFeature(tf.string)

    def chunks(record):
        example = tf.io.parse_single_example(record, described)
        actions = tf.reshape(example["steps/action"], (-1, ACTION))
        length = tf.shape(actions)[0]
        start = tf.range(length)
        window = start[:, None] + tf.range(HORIZON)
        target = tf.minimum(start + HORIZON, length - 1)
        sample = {
            "actions": tf.gather(actions, tf.minimum(window, length - 1)),
            "action_is_pad": window >= length,
            "proprio": tf.reshape(example["steps/observation/state"], (-1, STATE)),
            "instruction": example["steps/language_instruction"],
        }
        for name in CAMERAS:
            encoded = example[f"steps/observation/{name}"]
            sample[name] = tf.stack([encoded, tf.gather(encoded, target)], axis=1)
        return sample

    method = "INTEGER_ACCURATE" if exact else ""

    def picture(encoded):
        return tf.io.decode_jpeg(encoded, channels=3, dct_method=method)

    def decode(sample):
        for name in CAMERAS:
            pair = [picture(sample[name][moment]) for moment in (0, 1)]
            images = tf.stack(pair)
            images.set_shape((2, SIDE, SIDE, 3))
            if resize:
                images = tf.image.resize(images, (224, 224), resize, antialias=True)
                images = tf.cast(tf.clip_by_value(tf.round(images), 0, 255), tf.uint8)
            sample[name] = images
        return sample

    data = tf.data.Dataset.from_tensor_slices(shards).shuffle(len(shards))
    data = data.repeat() if endless else data
    data = data.interleave(
        tf.data.TFRecordDataset, cycle_length=len(shards), num_parallel_calls=tf.data.AUTOTUNE
    )
    data = data.map(chunks, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.flat_map(tf.data.Dataset.from_tensor_slices).shuffle(shuffle)
    data = data.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.batch(batch_size, drop_remainder=endless).prefetch(tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.deterministic = False  # it is shuffled, so no thread needs to wait for another
    return data.with_options(options)
