"""Samples per second from a bucket, by the number of requests at a time, against those from files.

    python -m benchmarks.object_storage [--delay 0.05] [--seconds 10] [--json result.json]

The bucket is an emulator of Google's storage API on this machine behind a proxy, which makes each
request take longer. It shares the cores with the reader, and answers a few hundred requests per
second at most. Batches are the quickstart's, of the dataset that ships with the project: each
sample is two images of some 3 KB, and each image is a request.
"""

import argparse
import contextlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from imagewam_jax.config.loading import load_config
from imagewam_jax.data.datasets import config_data
from imagewam_jax.data.loading.loader import TrainIterator
from tests.buckets import a_bucket
from tests.training.tiny import SAMPLE

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delay", type=float, default=0.05, help="of each request, in seconds")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument(
        "--concurrent", type=int, nargs="+", default=[1, 4, 16, 64], help="requests at a time"
    )
    parser.add_argument("--json", type=Path, help="a file for the result")
    args = parser.parse_args()
    with a_bucket() as bucket, tempfile.TemporaryDirectory() as folder:
        address = bucket.put_folder(SAMPLE, "rlds/metaworld_faucet/1.0.0")
        rows = [("files", 0, 0.0), *((f"bucket, {n} at a time", n, 0.0) for n in args.concurrent)]
        rows += [(f"bucket, {n} at a time, {args.delay} s", n, args.delay) for n in args.concurrent]
        result = {}
        for name, concurrent, delay in tqdm(rows, desc="measure", unit="reader"):
            bucket.behave(seconds=delay)
            place = address if concurrent else str(SAMPLE)
            with batches(place, folder, max(1, concurrent)) as stream:
                samples = measure(stream, args.seconds)
            requests, most = bucket.counts()
            result[name] = {"samples_per_second": samples, "requests": requests, "most": most}
    print("| reader | samples/s | most requests at a time |\n|---|---:|---:|")
    for name, row in result.items():
        print(f"| {name} | {row['samples_per_second']:.0f} | {row['most'] or ''} |")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


@contextlib.contextmanager
def batches(place: str, indexes: str, concurrent: int) -> Iterator[TrainIterator]:
    """The quickstart's stream, from other places."""
    config = load_config(str(ROOT / "configs" / "quickstart.py"), [])
    config.data.directory, config.data.index_directory = place, indexes
    config.data.concurrent_reads = concurrent
    data = config_data(config.to_dict())
    stream = TrainIterator(
        data.sources(config.data.train_split),
        global_batch=config.train.batch_size,
        seed=0,
        num_threads=config.data.threads,
        prefetch=config.data.prefetch,
    )
    with contextlib.closing(stream):
        yield stream


def measure(stream: TrainIterator, seconds: float) -> float:
    """Samples per second, once as many batches as are read ahead have been taken."""
    for _ in range(12):
        next(stream)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        count += len(next(stream)["index"])
    return count / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
