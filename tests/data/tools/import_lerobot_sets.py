"""Imports the LeRobot folders of a test and pickles what TFDS reads back.

Run as its own process: TensorFlow must not enter the process of the tests.

    python import_lerobot_sets.py FOLDER

FOLDER/jobs.pickle is [(source, output, options)]; leaves FOLDER/results.pickle, a list of
{"path", "said", "splits": {split: [(metadata, [step])]}}.
"""

import pickle
import sys
from pathlib import Path

from imagewam_jax.data.tools.lerobot import import_lerobot, jobs


def read_back(path):
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(path)
    return {
        split: [
            (
                {key: value.numpy() for key, value in episode["episode_metadata"].items()},
                list(episode["steps"].as_numpy_iterator()),
            )
            for episode in builder.as_dataset(split=split)
        ]
        for split in builder.info.splits
    }


def main(folder):
    results = []
    for source, output, options in pickle.loads((folder / "jobs.pickle").read_bytes()):
        # So that a set of a few episodes makes several jobs and shards.
        jobs._SHARD_BYTES = options.pop("shard_bytes", jobs._SHARD_BYTES)
        said = []
        path = import_lerobot(source, output, progress=False, report=said.append, **options)
        results.append({"path": path, "said": said, "splits": read_back(path)})
    (folder / "results.pickle").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
