"""Makes the samples of the toy set with the transformations of `rlds`, from what TFDS reads.

Run as its own process: TensorFlow must not enter the process of the tests.

    python read_with_rlds.py DATASET_DIR FILE

writes a pickle of the split "train", {(horizon, stride, truncated): [episode]}. An episode is a
dict of "actions" [T, H, 4], "action_is_pad" [T, H], "target_is_pad" [T], "state" [T, 5], and
"image" and "target", [T] encoded images by camera. Truncated episodes end after the first step
whose state begins with a number above 1.
"""

import pickle
import sys
from pathlib import Path
from unittest import mock

import tensorflow as tf
import tensorflow_datasets as tfds

# rlds imports dm-reverb for its patterns, which are not used here; dm-reverb has no release for
# current versions of TensorFlow.
sys.modules["reverb"] = mock.MagicMock()
import rlds  # noqa: E402

CASES = ((16, 1, False), (5, 8, False), (4, 3, True))
CAMERAS = ("image", "wrist_image")
RELATIVE = 2  # the first dimensions of an action are displacements


def read_episodes(dataset_dir):
    encoded = {"steps": {"observation": {name: tfds.decode.SkipDecoding() for name in CAMERAS}}}
    dataset = tfds.builder_from_directory(dataset_dir).as_dataset(
        split="train", decoders=encoded, read_config=tfds.ReadConfig(interleave_cycle_length=1)
    )
    return [episode["steps"].map(flat).cache() for episode in dataset]


def flat(step):
    return {
        "relative": step["action"][:RELATIVE],
        "absolute": step["action"][RELATIVE:],
        "state": step["observation"]["state"],
        "image": {name: step["observation"][name] for name in CAMERAS},
        "is_last": step["is_last"],
    }


def samples(steps, horizon, stride):
    """One sample per step: chunks of `horizon` actions, and the image `horizon * stride` later."""
    last = rlds.transformations.final_step(steps)
    # `concatenate` sets what one of the two lacks to zero: displacements of the padding, and the
    # flag of the steps.
    beyond = {key: last[key] for key in ("absolute", "state", "image", "is_last")}
    padding = tf.data.Dataset.from_tensors(beyond | {"is_pad": True}).repeat(horizon * stride)
    padded = rlds.transformations.concatenate(steps, padding)
    chunks = rlds.transformations.batch(
        padded, size=horizon, shift=1, stride=stride, drop_remainder=True
    )
    ahead = padded.map(lambda s: {**s, "target": s["image"], "target_is_pad": s["is_pad"]})
    ahead = rlds.transformations.shift_keys(ahead, ["target", "target_is_pad"], horizon * stride)
    rows = [
        {
            "actions": tf.concat([chunk["relative"], chunk["absolute"]], -1).numpy(),
            "action_is_pad": chunk["is_pad"].numpy(),
            "target_is_pad": bool(step["target_is_pad"]),
            "state": step["state"].numpy(),
            "image": {name: step["image"][name].numpy() for name in CAMERAS},
            "target": {name: step["target"][name].numpy() for name in CAMERAS},
        }
        # More chunks than steps: the rest start in the padding.
        for chunk, step in zip(chunks, ahead, strict=False)
    ]
    return {key: [row[key] for row in rows] for key in rows[0]}


def main(dataset_dir, file):
    episodes = read_episodes(dataset_dir)
    found = {case: [] for case in CASES}
    for steps, following in zip(episodes, [*episodes[1:], episodes[0]], strict=True):
        # Episode ends are found in a stream that goes on behind them.
        stream = rlds.transformations.concatenate(steps, following)
        whole = rlds.transformations.truncate_after_condition(stream, lambda s: s["is_last"])
        short = rlds.transformations.truncate_after_condition(whole, lambda s: s["state"][0] > 1)
        for horizon, stride, truncated in CASES:
            rows = samples(short if truncated else whole, horizon, stride)
            found[horizon, stride, truncated].append(rows)
    Path(file).write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
