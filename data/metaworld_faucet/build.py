"""Writes collected faucet demonstrations as an RLDS dataset.

    python data/metaworld_faucet/build.py --raw RAW_DIR --output DATA_DIR

The dataset is then DATA_DIR/metaworld_faucet/1.0.0; read it with `tfds.builder_from_directory`.
"""

import argparse
from pathlib import Path

import tensorflow_datasets as tfds
from metaworld_faucet_dataset_builder import MetaworldFaucet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, required=True, help="folder that collect.py filled")
    parser.add_argument("--output", type=Path, required=True, help="folder of TFDS datasets")
    parser.add_argument("--shards", type=int, default=4, help="files per split")
    arguments = parser.parse_args()

    builder = MetaworldFaucet(raw_dir=arguments.raw, data_dir=arguments.output)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(num_shards=arguments.shards)
    )
    for name, split in builder.info.splits.items():
        print(f"{name}: {split.num_examples} episodes in {split.num_shards} shards")
    print(builder.data_path)


if __name__ == "__main__":
    main()
