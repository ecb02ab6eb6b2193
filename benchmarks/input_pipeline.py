"""Samples per second and core of the input pipeline, against a tf.data reader.

    python benchmarks/input_pipeline.py [--folder DIR] [--rounds 25] [--json result.json]

Each reader lives in a process of its own and they take turns, so that a busy machine slows all of
them. A process is stopped while others have their turn: the CPU time of samples that it read ahead
meanwhile would not be counted. A sample is a chunk of 16 actions and two cameras, now and 16 steps
later: four JPEGs. Samples per core-second are samples over the CPU time of the process with all its
threads.

TensorFlow decodes with a fast, less exact DCT unless told otherwise, and so does the reader that
ours is compared with; the one with "exact DCT" has the same pixels as ours.

Our pipeline resizes on the accelerator, so its batches are of stored size, and the ratios "with
resizing" compare them with batches that tf.data resized. The line "ours, resized by the CPU" runs
our resize on the CPU, where matrix products are expensive.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import platform
import resource
import signal
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCH, SHUFFLE = 64, 2000
SOAK_BATCH = 16
# Name: (task, how it resizes, its share of the batches of a measurement, less for slow ones).
READERS = {
    "tf.data": ("tf", None, 1.0),
    "tf.data, exact DCT": ("tf_exact", None, 1.0),
    "tf.data, bilinear": ("tf", "bilinear", 0.3),
    "tf.data, lanczos3": ("tf", "lanczos3", 0.3),
    "ours": ("ours", None, 1.0),
    "ours, resized by the CPU": ("ours", "device", 0.3),
}
# Name: (our reader, theirs, the ratio that is aimed at). Our batches are the same with resizing and
# without, since the accelerator resizes; the last line has the same work on the same processor.
RATIOS = {
    "without resizing": ("ours", "tf.data", 1.3),
    "without resizing, the same pixels": ("ours", "tf.data, exact DCT", None),
    "with resizing (ours on the accelerator) over bilinear": ("ours", "tf.data, bilinear", 5.0),
    "with resizing (ours on the accelerator) over lanczos3": ("ours", "tf.data, lanczos3", 5.0),
    "both resizing on the CPU, over bilinear": (
        "ours, resized by the CPU",
        "tf.data, bilinear",
        None,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="keeps the dataset for other runs")
    parser.add_argument("--episodes", type=int, default=72)
    parser.add_argument("--steps", type=int, default=118, help="steps of an episode, on average")
    parser.add_argument("--rounds", type=int, default=25, help="measurements of each reader")
    parser.add_argument("--batches", type=int, default=12, help="batches of a measurement")
    parser.add_argument(
        "--soak-steps", type=int, default=10_000, help=f"of {SOAK_BATCH} samples each"
    )
    parser.add_argument("--json", type=Path, help="a file for the result")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dataset = run("write", str(folder), args.episodes, args.steps)
        result = {
            "machine": _machine(),
            "settings": {k: str(v) for k, v in vars(args).items() if k not in ("folder", "json")},
            "versions": {n: version(n) for n in ("jax", "grain", "simplejpeg", "tensorflow-cpu")},
            "index": run("index", dataset),
            "readers": measure(dataset, args.rounds, args.batches),
            "first_batch_seconds": statistics.median(run("first", dataset) for _ in range(3)),
            "soak": run("soak", dataset, args.soak_steps),
        }
    result["machine"]["load_1min_at_end"] = round(os.getloadavg()[0], 2)
    medians = {n: r["samples_per_core_second"] for n, r in result["readers"].items()}
    result["ratios"] = {
        name: {"ratio": medians[ours] / medians[theirs], "aim": aim}
        for name, (ours, theirs, aim) in RATIOS.items()
    }
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


def run(task: str, *arguments: Any) -> Any:
    """Run a task in a new process; returns its result."""
    with contextlib.closing(Worker(task, *arguments)) as worker:
        return worker.ask()


def measure(dataset: str, rounds: int, batches: int) -> dict[str, dict[str, float]]:
    """Measure all readers in turns; returns the medians of each."""
    with contextlib.ExitStack() as stack:
        workers = {}
        counts = {name: max(1, round(batches * part)) for name, (*_, part) in READERS.items()}
        for name, (kind, resize, _) in tqdm(READERS.items(), desc="warm", unit="reader"):
            workers[name] = stack.enter_context(contextlib.closing(Worker(kind, dataset, resize)))
            workers[name].ask(counts[name])  # threads, buffers, the page cache, tf.data's tuning
            workers[name].stop()
        found: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for _ in tqdm(range(rounds), desc="measure", unit="round"):
            for name, worker in workers.items():
                worker.go_on()
                found[name].append(worker.ask(counts[name]))
                worker.stop()
    return {
        name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        | {"rounds": [round(row["samples_per_core_second"], 1) for row in rows]}
        for name, rows in found.items()
    }


class Worker:
    """A process that runs a task and answers questions."""

    def __init__(self, task: str, *arguments: Any):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, task, arguments))
        self._process.start()
        theirs.close()

    def ask(self, *question: Any) -> Any:
        self._pipe.send(question)
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def stop(self) -> None:
        """Stop the process; returns when none of its threads runs any more."""
        os.kill(self._process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.go_on()
        self._pipe.close()
        self._process.join()


def _serve(pipe: Any, task: str, arguments: tuple) -> None:
    try:
        answer = TASKS[task](*arguments)
        with contextlib.suppress(EOFError):
            while True:
                pipe.send(answer(*pipe.recv()))
    except Exception as error:
        pipe.send(error)


def _once(function):
    """Make a task of a function that answers one question."""
    return lambda *arguments: lambda: function(*arguments)


def _write(folder: str, episodes: int, steps: int) -> str:
    sys.path.insert(0, str(Path(__file__).parent))
    import tf_pipeline  # not from a package: TFDS looks for its builder's files there

    found = sorted(Path(folder).glob("synthetic/*/features.json"))
    return str(found[0].parent if found else tf_pipeline.write(Path(folder), episodes, steps))


def _index(dataset: str) -> dict[str, float]:
    """Bytes indexed per second in one process, and bytes of index per step."""
    import shutil

    from imagewam_jax.data.index.build import build_index

    index_dir = Path(dataset) / "imagewam_index"
    shutil.rmtree(index_dir, ignore_errors=True)
    size = sum(path.stat().st_size for path in Path(dataset).glob("*.tfrecord*"))
    start = time.perf_counter()
    index = build_index(dataset, workers=1, progress=False)
    seconds = time.perf_counter() - start
    held = sum(path.stat().st_size for path in index_dir.rglob("*") if path.is_file())
    frames = index.splits["train"].num_frames
    return {"gb_per_second": size / seconds / 1e9, "bytes_per_step": held / frames, "steps": frames}


def _data(dataset: str):
    from imagewam_jax.config.defaults import defaults
    from imagewam_jax.data.datasets import open_data

    row = {
        "cameras": {"primary": "observation/image", "wrist": "observation/wrist_image"},
        "action": "eef_delta",
        "state": {"name": "joints", "dims": [f"j{n}" for n in range(8)]},
        "control_hz": 10.0,
        "action_keys": ["action"],
        "state_keys": ["observation/state"],
    }
    section = defaults().data.to_dict() | {
        "directory": dataset,
        "dataset": "synthetic",
        "rows": {"synthetic": row},
        "cameras": ("primary", "wrist"),
    }
    return open_data(section, horizon=16, action_dim=7, state_dim=8)


def _stream(dataset: str, batch: int):
    """Read batches as `imagewam train` does."""
    from imagewam_jax.config.defaults import defaults
    from imagewam_jax.data.loading.loader import TrainIterator

    section, sources = defaults().data, _data(dataset).sources("train")
    options = {"num_threads": section.threads, "prefetch": section.prefetch}
    return TrainIterator(sources, global_batch=batch, seed=0, **options)


def _ours(dataset: str, resize: str | None):
    stream = _stream(dataset, BATCH)
    if resize:
        import jax

        from imagewam_jax.preprocess.images import ImageSpec, prepare_images

        spec = ImageSpec("row", (224, 224))
        finish = jax.jit(lambda images: prepare_images(images, None, spec, None))
        return _alone(_counted(lambda: finish(next(stream)["images"]).block_until_ready()))
    return _alone(_counted(lambda: next(stream)))


def _alone(function):
    """Call the function, then check that neither TensorFlow nor PyTorch is in this process."""

    def answer(*arguments):
        result = function(*arguments)
        found = {"tensorflow", "torch"} & sys.modules.keys()
        assert not found, f"{found} are in the training process"
        return result

    return answer


def _tf(dataset: str, resize: str | None, exact: bool = False):
    from benchmarks import tf_pipeline

    batches = iter(tf_pipeline.reader(Path(dataset), BATCH, SHUFFLE, resize, exact=exact))
    return _counted(lambda: next(batches))


def _counted(step):
    def answer(count: int) -> dict[str, float]:
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(count):
            step()
        after, wall = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        samples = count * BATCH
        return {
            "samples_per_core_second": samples / cpu,
            "samples_per_second": samples / wall,
            "rss_mb": _rss_mb(),
        }

    return answer


def _first(dataset: str) -> float:
    """Seconds from an indexed dataset to its first batch, after the imports."""
    _data(dataset)  # imports, and the standardized episodes, which are made once

    start = time.perf_counter()
    stream = _stream(dataset, BATCH)
    next(stream)
    seconds = time.perf_counter() - start
    stream.close()
    return seconds


def _soak(dataset: str, steps: int) -> dict[str, Any]:
    """Resident memory through many steps, and its slope after the first tenth of them."""
    import numpy as np

    stream, at, resident = _stream(dataset, SOAK_BATCH), [], []
    every = max(1, steps // 200)
    for step in tqdm(range(1, steps + 1), desc="soak", unit="step"):
        next(stream)
        if step % every == 0:
            at.append(step)
            resident.append(_rss_mb())
    stream.close()
    settled = len(at) // 10
    x, y = np.array(at[settled:], float), np.array(resident[settled:])
    # Least squares, without numpy.polyfit's warning about a single point.
    slope = ((x - x.mean()) * (y - y.mean())).sum() / max(1.0, ((x - x.mean()) ** 2).sum())
    return {
        "steps": steps,
        "batch": SOAK_BATCH,
        "rss_mb": [round(mb, 1) for mb in resident],
        "growth_mb": round(resident[-1] - resident[settled], 1),
        "mb_per_1000_steps": round(float(slope) * 1000, 3),
    }


def _our_epoch(dataset: str, batch: int) -> dict[str, Any]:
    """All samples of one epoch of our reader, for tests."""
    stream, (source,) = _stream(dataset, batch), _data(dataset).sources("train")
    count = len(source.start_frames)
    batches = [next(stream) for _ in range(-(-count // batch))]
    stream.close()
    keys = ("actions", "action_is_pad", "proprio", "images")
    return _joined([{key: b[key] for key in keys} for b in batches], count)


def _tf_epoch(dataset: str, batch: int) -> dict[str, Any]:
    import numpy as np

    from benchmarks import tf_pipeline

    batches = []
    reader = tf_pipeline.reader(Path(dataset), batch, SHUFFLE, None, exact=True, endless=False)
    for found in reader:
        arrays = {key: value.numpy() for key, value in found.items()}
        images = np.stack([arrays.pop(name) for name in tf_pipeline.CAMERAS], axis=1)
        batches.append(arrays | {"images": images})
    return _joined(batches, None)


def _joined(batches: list[dict[str, Any]], count: int | None) -> dict[str, Any]:
    import numpy as np

    return {key: np.concatenate([b[key] for b in batches])[:count] for key in batches[0]}


def _machine() -> dict[str, Any]:
    models = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


TASKS = {
    "write": _once(_write),
    "index": _once(_index),
    "ours": _ours,
    "tf": _tf,
    "tf_exact": functools.partial(_tf, exact=True),
    "first": _once(_alone(_first)),
    "soak": _once(_alone(_soak)),
    "our_epoch": _once(_alone(_our_epoch)),
    "tf_epoch": _once(_tf_epoch),
}


def table(result: dict[str, Any]) -> str:
    lines = [f"{'reader':28}{'samples/core-s':>16}{'samples/s':>12}{'RSS MB':>10}"]
    for name, row in result["readers"].items():
        lines.append(
            f"{name:28}{row['samples_per_core_second']:16.0f}{row['samples_per_second']:12.0f}"
            f"{row['rss_mb']:10.0f}"
        )
    lines.append("")
    for name, row in result["ratios"].items():
        aim = f" (aim {row['aim']})" if row["aim"] else ""
        lines.append(f"ratio {name}: {row['ratio']:.2f}{aim}")
    index, soak = result["index"], result["soak"]
    lines += [
        f"first batch after imports: {result['first_batch_seconds']:.2f} s",
        f"index: {index['gb_per_second']:.2f} GB/s in one process, "
        f"{index['bytes_per_step']:.0f} bytes a step",
        f"soak: {soak['steps']} steps, resident {soak['rss_mb'][0]:.0f} MB at first, "
        f"{soak['rss_mb'][-1]:.0f} MB at last, {soak['growth_mb']:+.1f} MB after a tenth of them, "
        f"slope {soak['mb_per_1000_steps']:+.2f} MB per 1,000 steps",
        "neither tensorflow nor torch was in a process of ours",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
