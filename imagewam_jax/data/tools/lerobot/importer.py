"""The import as a whole: plan, check the numbers, convert in parallel, publish.

Work is cut into jobs, runs of consecutive episodes that make one shard. Everything happens in
`.<version>.partial` beside the version folder to be. A job leaves its shards and, last, a file that
lists them, so an import that was killed goes on with the jobs that are not done when it is
started again; if the source or the options are others by then it starts over. The version folder
appears by one rename, when all of it is there.
"""

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.util
import json
import multiprocessing
import os
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from imagewam_jax.data.tools.lerobot.folder import Episode, LeRobotFolder, read_lerobot_folder
from imagewam_jax.data.tools.lerobot.layout import Layout, plan_layout
from imagewam_jax.data.tools.lerobot.shards import Part, ShardWriter, publish, rlds_features
from imagewam_jax.data.tools.lerobot.suggested_row import describe_row
from imagewam_jax.errors import DataError

# A shard of this size by the estimate below is between a half and twice of it in fact.
_SHARD_BYTES = 400 * 2**20
# Of a JPEG of quality 95 of a camera's picture: 23 kB at 256x256.
_BYTES_PER_PIXEL = 0.35
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class _Task:
    """All that a process needs to convert any of the jobs."""

    folder: LeRobotFolder
    layout: Layout
    work: Path
    quality: int
    threads: int
    unused_frames: bool


@dataclasses.dataclass(frozen=True)
class _Job:
    number: int
    split: str
    episodes: tuple[Episode, ...]


def import_lerobot(
    source: Path | str,
    output: Path | str,
    *,
    name: str | None = None,
    version: str = "1.0.0",
    episodes: str | None = None,
    workers: int | None = None,
    jpeg_quality: int = 95,
    size: tuple[int, int] | None = None,
    skip: Collection[str] = (),
    allow_not_finite: bool = False,
    allow_unused_frames: bool = False,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> Path:
    """Converts a LeRobot folder to the RLDS folder `output/name/version`, which is returned.

    name: of the new set, by default from the name of the source folder. episodes: "first:end", a
    range of episode indices, either of them may be left out. size: (height, width) of every
    image, by default as stored. skip: LeRobot features to leave out. allow_not_finite: keep NaN
    and infinities in actions and states. allow_unused_frames: accept videos with frames that no
    episode claims. workers: processes, by default one per core and at most one per shard; one
    means this process. report: gets the lines for the user, the registry row last.

    Started again after it was killed, it goes on where it was. Raises DataError, before any video
    is decoded where it can, naming file, episode and what was expected; nothing appears at the
    place of the new set then.
    """
    _check_packages()
    folder = read_lerobot_folder(source)
    name = name or re.sub(r"[^a-z0-9]+", "_", folder.path.resolve().name.lower()).strip("_")
    _check_options(name, version, jpeg_quality, size, skip, folder)
    layout = plan_layout(folder.features, size, skip)
    chosen = _choose(folder, episodes)
    target = Path(output) / name / version
    if target.exists():
        raise DataError(f"{target}: exists already; remove it, or give another version or name")
    jobs = plan_jobs(folder, layout, chosen)
    workers = max(1, min(len(jobs), workers or os.cpu_count() or 1))
    work = target.with_name(f".{version}.partial")
    task = _Task(
        folder=folder,
        layout=layout,
        work=work,
        quality=jpeg_quality,
        threads=0 if workers == 1 else 1,
        unused_frames=allow_unused_frames,
    )
    files = _files(chosen)
    with _only_one_import(target.parent, version):
        fingerprint = _fingerprint(task, chosen, files)
        _prepare(work, fingerprint, report)
        _check_numbers(task, chosen, allow_not_finite, progress, report)
        started = time.monotonic()
        frames = _convert(task, jobs, workers, progress)
        seconds = time.monotonic() - started
        parts: dict[str, list[Part]] = {}
        for job in jobs:
            parts.setdefault(job.split, []).extend(_finished(work, job))
        shutil.rmtree(work / "ready", ignore_errors=True)
        description = (
            f"Imported from a LeRobot {folder.codebase_version} dataset, {folder.fps:g} steps per "
            f"second, robot type {folder.robot_type or 'not stated'}."
        )
        try:
            publish(work, target, name, parts, rlds_features(layout), description)
        except OSError as error:
            raise DataError(f"could not write {target}: {error}") from error
        shutil.rmtree(work)
    _report(report, task, chosen, parts, frames, seconds, target, name)
    return target


def plan_jobs(folder: LeRobotFolder, layout: Layout, episodes: Collection[Episode]) -> list[_Job]:
    """Runs of episodes of one split that make shards of about the same size."""
    pixels = 0
    for key in layout.cameras:
        height, width, _ = layout.image_shape(key)
        pixels += height * width
    per_frame = 1024 + int(pixels * _BYTES_PER_PIXEL)
    jobs: list[_Job] = []
    for split, indices in folder.splits.items():
        members = set(indices)
        part = [episode for episode in episodes if episode.index in members]
        total = sum(episode.length for episode in part)
        if not part:
            continue
        count = max(1, round(total * per_frame / _SHARD_BYTES))
        runs: list[list[Episode]] = [[] for _ in range(count)]
        before = 0
        for episode in part:
            runs[before * count // total].append(episode)
            before += episode.length
        jobs += [_Job(len(jobs) + i, split, tuple(r)) for i, r in enumerate(filter(None, runs))]
    return jobs


def _check_packages() -> None:
    missing = [
        p for p in ("av", "pyarrow", "tensorflow_datasets") if not importlib.util.find_spec(p)
    ]
    if missing:
        raise DataError(
            f"importing LeRobot folders needs {missing}: pip install 'imagewam-jax[lerobot]'"
        )


def _check_options(
    name: str,
    version: str,
    quality: int,
    size: tuple[int, int] | None,
    skip: Collection[str],
    folder: LeRobotFolder,
) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise DataError(f"name {name!r}: expected small letters, digits and _, a letter first")
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise DataError(f"version {version!r}: expected three numbers as in 1.0.0")
    if not 1 <= quality <= 100:
        raise DataError(f"jpeg_quality {quality}: expected 1 to 100")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise DataError(f"size {size}: expected height and width")
    if isinstance(skip, str):
        raise DataError(f"skip {skip!r}: expected a list of features")
    if unknown := sorted({split for split in folder.splits if not re.fullmatch(r"\w+", split)}):
        raise DataError(f"{folder.path}: TFDS cannot have splits of the names {unknown}")


def _choose(folder: LeRobotFolder, text: str | None) -> list[Episode]:
    if text is None:
        return list(folder.episodes)
    found = re.fullmatch(r"(\d*):(\d*)", text)
    if not found:
        raise DataError(f"episodes {text!r}: expected 'first:end'")
    start = int(found[1] or 0)
    stop = int(found[2]) if found[2] else folder.episodes[-1].index + 1
    chosen = [episode for episode in folder.episodes if start <= episode.index < stop]
    if not chosen or stop > folder.episodes[-1].index + 1:
        raise DataError(
            f"episodes {text!r}: {folder.path} has the episodes {folder.episodes[0].index} to "
            f"{folder.episodes[-1].index}"
        )
    return chosen


def _files(episodes: Collection[Episode]) -> list[Path]:
    """The data and video files of episodes; DataError if one is missing."""
    files = {episode.data_file for episode in episodes}
    files |= {span.file for episode in episodes for span in episode.videos.values()}
    missing = sorted(str(file) for file in files if not file.is_file())
    if missing:
        raise DataError(f"{missing[0]}: missing, as are {len(missing) - 1} other files of meta/")
    return sorted(files)


def _fingerprint(task: _Task, episodes: Collection[Episode], files: Collection[Path]) -> str:
    """Of what decides the shards: options, features, episodes, and the files by size and time."""
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


@contextlib.contextmanager
def _only_one_import(parent: Path, version: str) -> Iterator[None]:
    """Holds a lock, which ends with the process, so that a killed import blocks none after it."""
    file = parent / f".{version}.lock"
    with contextlib.ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(file, "w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"{parent / version}: another import is writing it now") from error
        except OSError as error:
            raise DataError(f"could not write below {parent}: {error}") from error
        yield
        file.unlink(missing_ok=True)


def _prepare(work: Path, fingerprint: str, report: Callable[[str], None]) -> None:
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


def _check_numbers(
    task: _Task,
    episodes: Collection[Episode],
    allow_not_finite: bool,
    progress: bool,
    report: Callable[[str], None],
) -> None:
    """Reads every number once, before hours of decoding: most that can be wrong shows here."""
    from imagewam_jax.data.tools.lerobot.episodes import EpisodeReader

    counts: dict[str, int] = {}
    first: dict[str, int] = {}
    reader = EpisodeReader(task.folder, task.layout)
    for episode in tqdm(episodes, desc="checking", unit="episode", disable=not progress):
        for key, count in reader.check_numbers(episode).items():
            if count:
                counts[key] = counts.get(key, 0) + count
                first.setdefault(key, episode.index)
    for key, count in counts.items():
        found = f"{count} numbers of {key!r} are NaN or infinite, first in episode {first[key]}"
        if not allow_not_finite:
            raise DataError(f"{task.folder.path}: {found}; allow_not_finite keeps them")
        report(f"{found}; they are kept")


def _convert(task: _Task, jobs: list[_Job], workers: int, progress: bool) -> int:
    """Runs the jobs that are not done; the number of frames (steps) converted now."""
    todo = [job for job in jobs if not _finished(task.work, job)]
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


def _run_in_processes(task: _Task, jobs: list[_Job], workers: int, bar: tqdm) -> None:
    # Not forked: TensorFlow and the video decoders have threads that a fork would break.
    context = multiprocessing.get_context("spawn")
    steps, stop = context.Queue(), context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=context, initializer=_start_process, initargs=(task, steps, stop)
    ) as pool:
        futures = {pool.submit(_run_in_process, job) for job in jobs}
        try:
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


def _start_process(task: _Task, steps: Any, stop: Any) -> None:
    _process.update(task=task, steps=steps, stop=stop)
    parent = os.getppid()

    def leave_with_parent() -> None:
        # A killed parent leaves its pool waiting for ever, and its jobs at work.
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=leave_with_parent, daemon=True).start()


def _run_in_process(job: _Job) -> None:
    def advance(steps: int) -> None:
        if _process["stop"].is_set():
            raise DataError("stopped: another process failed")
        _process["steps"].put(steps)

    _run_job(_process["task"], job, advance)


def _run_job(task: _Task, job: _Job, advance: Callable[[int], Any]) -> None:
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
            writer.write(reader.read(episode))
            advance(episode.length)
        parts = writer.finish()
    except OSError as error:
        raise DataError(f"could not write a shard into {task.work}: {error}") from error
    finally:
        writer.abandon()
        reader.close()
    done = task.work / f"{_stem(job)}.json"
    fresh = done.with_suffix(f".open-{os.getpid()}")
    fresh.write_text(json.dumps([part._asdict() for part in parts]))
    os.replace(fresh, done)


def _finished(work: Path, job: _Job) -> list[Part]:
    """The shards of a job that is done, [] if it is not."""
    done = work / f"{_stem(job)}.json"
    if not done.is_file():
        return []
    parts = [Part(**part) for part in json.loads(done.read_text())]
    return parts if all((work / part.file).is_file() for part in parts) else []


def _stem(job: _Job) -> str:
    return f"job-{job.number:05d}"


def _report(
    report: Callable[[str], None],
    task: _Task,
    episodes: list[Episode],
    parts: dict[str, list[Part]],
    frames: int,
    seconds: float,
    target: Path,
    name: str,
) -> None:
    steps = sum(episode.length for episode in episodes)
    cameras = len(task.layout.cameras)
    num_bytes = sum(part.num_bytes for shards in parts.values() for part in shards)
    shards = sum(map(len, parts.values()))
    report(
        f"wrote {target}: {len(episodes)} episodes, {steps} steps, {cameras} cameras, "
        f"{num_bytes / 2**20:.1f} MiB in {shards} shards; {frames * cameras} images in "
        f"{seconds:.1f} s ({frames * cameras / max(seconds, 1e-9):.0f} per second)"
    )
    if left_out := sorted(set(task.layout.skip)):
        report(f"left out: {left_out}")
    report("read it with this row:")
    report(describe_row(task.folder, task.layout, name))
