"""The jobs of an import: planned, run in parallel, and resumed after a kill.

A job is a run of consecutive episodes that make about one shard. It leaves its shards in the folder
of the import and, last, a file that lists them, so an import that is started again goes on with the
jobs that are not done.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import hashlib
import json
import multiprocessing
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imagewam_jax.data.index.build import ended_when_left, without_interrupts
from imagewam_jax.data.tools.lerobot.features import rlds_features
from imagewam_jax.data.tools.lerobot.folder import Episode, LeRobotFolder
from imagewam_jax.data.tools.lerobot.layout import Layout
from imagewam_jax.data.tools.rlds_shards import Shard, ShardWriter
from imagewam_jax.errors import DataError

# What a shard should be, by the estimate below; it comes out between half and twice as large.
_SHARD_BYTES = 400 * 2**20
# Bytes of a camera's JPEG of quality 95, as measured: 23 kB at 256x256.
_BYTES_PER_PIXEL = 0.35
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Task:
    """What a process needs to convert any of the jobs."""

    folder: LeRobotFolder
    layout: Layout
    work: Path
    quality: int
    threads: int
    unused_frames: bool


@dataclasses.dataclass(frozen=True)
class Job:
    """Consecutive episodes of one split, which make about one shard."""

    number: int
    split: str
    episodes: tuple[Episode, ...]


def plan_jobs(folder: LeRobotFolder, layout: Layout, episodes: Collection[Episode]) -> list[Job]:
    """Cuts the episodes of each split into jobs that make shards of about the same size."""
    pixels = 0
    for key in layout.cameras:
        height, width, _ = layout.image_shape(key)
        pixels += height * width
    per_frame = 1024 + int(pixels * _BYTES_PER_PIXEL)
    jobs: list[Job] = []
    for split, indices in folder.splits.items():
        members = set(indices)
        chosen = [episode for episode in episodes if episode.index in members]
        total = sum(episode.length for episode in chosen)
        if not chosen:
            continue
        count = max(1, round(total * per_frame / _SHARD_BYTES))
        runs: list[list[Episode]] = [[] for _ in range(count)]
        before = 0
        for episode in chosen:
            runs[before * count // total].append(episode)
            before += episode.length
        jobs += [Job(len(jobs) + i, split, tuple(r)) for i, r in enumerate(filter(None, runs))]
    return jobs


def prepare_folder(work: Path, fingerprint: str, report: Callable[[str], None]) -> None:
    """Makes the folder of an import; keeps what an interrupted one of this fingerprint left."""
    plan = work / "plan.txt"
    if work.exists():
        if plan.is_file() and plan.read_text() == fingerprint:
            report(f"going on with the import that was interrupted, in {work}")
        else:
            report(f"starting over: what is in {work} was made from something else")
            shutil.rmtree(work)
    for leftover in work.glob("*.open-*"):
        leftover.unlink()
    work.mkdir(exist_ok=True)
    plan.write_text(fingerprint)


def fingerprint(task: Task, episodes: Collection[Episode], files: Collection[Path]) -> str:
    """A hash of what decides the shards: options, features, episodes, sizes and times of files."""
    digest = hashlib.sha256()
    folder, layout = task.folder, task.layout
    for part in (
        _FORMAT,
        task.quality,
        layout,
        folder.tasks,
        folder.fps,
        sorted(folder.splits.items()),
        task.unused_frames,
        [(e.index, e.length, e.data_file, sorted(e.videos.items())) for e in episodes],
        [(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    ):
        digest.update(repr(part).encode())
    return digest.hexdigest()


def convert_jobs(task: Task, jobs: list[Job], workers: int, progress: bool) -> int:
    """Runs the jobs that are not done yet; returns how many steps were converted now."""
    todo = [job for job in jobs if not finished_shards(task.work, job)]
    total = sum(episode.length for job in jobs for episode in job.episodes)
    left = sum(episode.length for job in todo for episode in job.episodes)
    bar = tqdm(
        total=total, initial=total - left, unit="step", desc="converting", disable=not progress
    )
    with bar:
        if workers == 1 or len(todo) < 2:
            for job in todo:
                _run_job(task, job, bar.update)
        else:
            _run_in_processes(task, todo, min(workers, len(todo)), bar)
    return left


def _run_in_processes(task: Task, jobs: list[Job], workers: int, bar: tqdm) -> None:
    # Not forked: TensorFlow and the video decoders have threads that a fork would break.
    context = multiprocessing.get_context("spawn")
    steps, stop = context.Queue(), context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_process, initargs=(task, steps, stop)
    ) as pool:
        try:
            with ended_when_left():
                with without_interrupts():
                    futures = {pool.submit(_run_in_process, job) for job in jobs}
                while futures:
                    done, futures = concurrent.futures.wait(
                        futures, timeout=0.2, return_when="FIRST_COMPLETED"
                    )
                    with contextlib.suppress(queue.Empty):
                        while True:
                            bar.update(steps.get_nowait())
                    for future in done:
                        future.result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise DataError(
                "a converting process died, out of memory? Fewer workers need less; started "
                "again, the import goes on where it was"
            ) from error
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


_process: dict[str, Any] = {}


def _start_process(task: Task, steps: Any, stop: Any) -> None:
    _process.update(task=task, steps=steps, stop=stop)
    parent = os.getppid()

    def leave_with_parent() -> None:
        # The processes of a pool do not end by themselves when their parent is killed.
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _run_in_process(job: Job) -> None:
    def advance(steps: int) -> None:
        if _process["stop"].is_set():
            raise DataError("stopped: another process failed")
        _process["steps"].put(steps)

    _run_job(_process["task"], job, advance)


def _run_job(task: Task, job: Job, advance: Callable[[int], Any]) -> None:
    from imagewam_jax.data.tools.lerobot.episodes import EpisodeReader

    reader = EpisodeReader(
        task.folder,
        task.layout,
        quality=task.quality,
        threads=task.threads,
        unused_frames=task.unused_frames,
    )
    writer = ShardWriter(task.work / _stem(job), rlds_features(task.layout))
    try:
        for episode in job.episodes:
            writer.write(reader.read(episode), str(episode.index))
            advance(episode.length)
        shards = writer.finish()
    except OSError as error:
        raise DataError(f"could not write a shard into {task.work}: {error}") from error
    finally:
        writer.abandon()
        reader.close()
    done = task.work / f"{_stem(job)}.json"
    fresh = done.with_suffix(f".open-{os.getpid()}")
    fresh.write_text(json.dumps([shard._asdict() for shard in shards]))
    os.replace(fresh, done)


def finished_shards(work: Path, job: Job) -> list[Shard]:
    """The shards of a job, [] if the job is not done."""
    done = work / f"{_stem(job)}.json"
    if not done.is_file():
        return []
    shards = [Shard(**shard) for shard in json.loads(done.read_text())]
    return shards if all((work / shard.file).is_file() for shard in shards) else []


def _stem(job: Job) -> str:
    return f"job-{job.number:05d}"
