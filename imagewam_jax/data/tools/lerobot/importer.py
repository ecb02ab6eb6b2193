"""The import as a whole: plan the jobs, check the numbers, convert in parallel, publish.

Everything happens in `.<version>.partial` beside the future version folder. An import that was
killed and is started again goes on with the jobs that are not done; if the source or the options
have changed since, it starts over. The version folder appears by one rename, when it is complete.
"""

import importlib.util
import os
import re
import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tqdm import tqdm

from imagewam_jax.data.index.stand_ins import file_stand_in
from imagewam_jax.data.tools.lerobot.features import rlds_features
from imagewam_jax.data.tools.lerobot.folder import Episode, LeRobotFolder, read_lerobot_folder
from imagewam_jax.data.tools.lerobot.jobs import (
    Task,
    convert_jobs,
    fingerprint,
    finished_shards,
    plan_jobs,
    prepare_folder,
)
from imagewam_jax.data.tools.lerobot.layout import Layout, plan_layout
from imagewam_jax.data.tools.lerobot.suggested_spec import describe_spec
from imagewam_jax.data.tools.rlds_shards import Shard, publish
from imagewam_jax.errors import DataError
from imagewam_jax.files import lock_beside, only_writer

_SMALL = 1024  # bytes; a pointer to a file is shorter


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

    name: of the new dataset; by default it is made from the name of the source folder.
    episodes: "first:end", a range of episode indices; either may be left out.
    size: (height, width) of every image; by default images keep theirs.
    skip: LeRobot features to leave out.
    allow_not_finite: keep NaN and infinities in actions and states.
    allow_unused_frames: accept videos with frames that no episode claims.
    workers: processes, by default one per core and at most one per shard; 1 means this process.
    report: is called with the lines for the user, the registry row last.

    Started again after a kill, the import goes on where it was. DataError names the file, the
    episode and what was expected, before any video is decoded where it can; then no version folder
    appears.
    """
    _check_packages()
    folder = read_lerobot_folder(source)
    name = name or re.sub(r"[^a-z0-9]+", "_", folder.path.resolve().name.lower()).strip("_")
    _check_options(name, version, jpeg_quality, size, skip, folder)
    layout = plan_layout(folder.features, size, skip)
    _check_cameras(folder, layout)
    chosen = _choose(folder, episodes)
    target = Path(output) / name / version
    if target.exists():
        raise DataError(f"{target}: exists already; remove it, or give another version or name")
    jobs = plan_jobs(folder, layout, chosen)
    workers = max(1, min(len(jobs), workers or os.cpu_count() or 1))
    work = target.with_name(f".{version}.partial")
    task = Task(
        folder=folder,
        layout=layout,
        work=work,
        quality=jpeg_quality,
        threads=0 if workers == 1 else 1,
        unused_frames=allow_unused_frames,
    )
    files = _files(chosen)
    with only_writer(lock_beside(target), "imagewam data import-lerobot"):
        prepare_folder(work, fingerprint(task, chosen, files), report)
        _check_numbers(task, chosen, allow_not_finite, progress, report)
        started = time.monotonic()
        frames = convert_jobs(task, jobs, workers, progress)
        seconds = time.monotonic() - started
        shards: dict[str, list[Shard]] = {}
        for job in jobs:
            shards.setdefault(job.split, []).extend(finished_shards(work, job))
        shutil.rmtree(work / "ready", ignore_errors=True)
        description = (
            f"Imported from a LeRobot {folder.codebase_version} dataset, {folder.fps:g} steps per "
            f"second, robot type {folder.robot_type or 'not stated'}."
        )
        try:
            publish(work, target, name, shards, rlds_features(layout), description)
        except OSError as error:
            raise DataError(f"could not write {target}: {error}") from error
        shutil.rmtree(work)
    _report(report, task, chosen, shards, frames, seconds, target, name)
    return target


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


def _check_cameras(folder: LeRobotFolder, layout: Layout) -> None:
    """Raises DataError for a camera that would be lost without a word."""
    pattern = "videos/*/*" if folder.codebase_version.startswith("v2") else "videos/*"
    recorded = {path.name for path in folder.path.glob(pattern) if path.is_dir()}
    if unlisted := sorted(recorded - set(folder.features) - set(layout.skip)):
        raise DataError(
            f"{folder.path}: videos of {unlisted}, which info.json does not list; list them there, "
            "or leave them out with skip"
        )
    if not layout.cameras and not any(key in layout.skip for key in folder.features):
        kinds = {key: f"{f.dtype} {f.shape}" for key, f in folder.features.items()}
        raise DataError(
            f"{folder.path}: no feature is a camera (an image, a video, or uint8 of the shape "
            f"(height, width, channels)): {kinds}"
        )


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
    """The data and video files of episodes. DataError: one is missing, or was not downloaded."""
    files = {episode.data_file for episode in episodes}
    files |= {span.file for episode in episodes for span in episode.videos.values()}
    missing = sorted(str(file) for file in files if not file.is_file())
    if missing:
        raise DataError(f"{missing[0]}: missing, as are {len(missing) - 1} other files of meta/")
    small = [file for file in sorted(files) if file.stat().st_size < _SMALL]
    pointers = [file for file in small if file_stand_in(file)]
    if pointers:
        raise DataError(
            f"{pointers[0]}: {file_stand_in(pointers[0])}; so are {len(pointers) - 1} other of the "
            f"{len(files)} files of these episodes"
        )
    return sorted(files)


def _check_numbers(
    task: Task,
    episodes: Collection[Episode],
    allow_not_finite: bool,
    progress: bool,
    report: Callable[[str], None],
) -> None:
    """Reads every number once, before hours of decoding: most faults show here."""
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
        report(f"{found}; they are kept: train with data.not_finite='drop_steps'")


def _report(
    report: Callable[[str], None],
    task: Task,
    episodes: list[Episode],
    shards: dict[str, list[Shard]],
    frames: int,
    seconds: float,
    target: Path,
    name: str,
) -> None:
    steps = sum(episode.length for episode in episodes)
    cameras = len(task.layout.cameras)
    written = [shard for of_split in shards.values() for shard in of_split]
    num_bytes = sum(shard.num_bytes for shard in written)
    report(
        f"wrote {target}: {len(episodes)} episodes, {steps} steps, {cameras} cameras, "
        f"{num_bytes / 2**20:.1f} MiB in {len(written)} shards; {frames * cameras} images in "
        f"{seconds:.1f} s ({frames * cameras / max(seconds, 1e-9):.0f} per second)"
    )
    if left_out := sorted(set(task.layout.skip)):
        report(f"left out: {left_out}")
    report("read it with this row:")
    report(describe_spec(task.folder, task.layout, name))
